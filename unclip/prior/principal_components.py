"""Principal components of image embeddings: few numbers that keep nearly all of their variance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PrincipalComponents(nn.Module):
    """Coordinates along the directions of largest variance, by decreasing variance; fitted, not trained."""

    mean: Tensor
    directions: Tensor
    deviations: Tensor
    is_kept: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("directions", torch.eye(dim))  # one per column
        self.register_buffer("deviations", torch.ones(dim))
        self.register_buffer("is_kept", torch.ones(dim, dtype=torch.bool))  # the first K of them

    @property
    def count(self) -> int:
        """K, the number of components that are kept."""
        return int(self.is_kept.sum())

    def fit(self, embeddings: Tensor, share: float) -> None:
        """Fit to embeddings (N, D); keep as few components as hold this share of the variance."""
        embeddings = embeddings.cpu().double()  # not every device has float64
        mean = embeddings.mean(dim=0)
        centred = embeddings - mean
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
        variances = variances.flip(0).clamp(min=0)
        before = variances.cumsum(dim=0) - variances
        self.mean.copy_(mean)
        self.directions.copy_(directions.flip(1))
        self.deviations.copy_(variances.sqrt())
        self.is_kept.copy_(before < share * variances.sum())
        self.is_kept[0] = True

    def project(self, embeddings: Tensor) -> Tensor:
        """Embeddings (N, D) -> components (N, K)."""
        return (embeddings - self.mean) @ self.directions[:, : self.count]

    def restore(self, components: Tensor) -> Tensor:
        """Components (N, K) -> unit embeddings (N, D); the components that are not kept are at their mean."""
        return F.normalize(self.mean + components @ self.directions[:, : components.shape[1]].T, dim=-1)
