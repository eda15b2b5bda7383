"""The coordinates that a prior works in: CLIP embeddings along axes of their own, scaled."""

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.layers import EmbeddingScaler
from unclip.prior.principal_components import PrincipalComponents

LEAST_DEVIATION = 1e-3
"""Principal components that vary less than this share of the first are scaled as if they varied that much."""


class AxisScaler(EmbeddingScaler):
    """Scales embeddings along CLIP's own coordinates, or along the principal components of the training data.

    Unit-norm embeddings of D coordinates have a variance near 1/D: diffused as they are, nearly all noise levels would
    drown them. The statistics are stored with the weights: the axes (D, D) are orthonormal, one per column, and `std`
    (D,) is what the coordinate along each is divided by.
    """

    axes: Tensor

    def __init__(self, dim: int):
        super().__init__(dim)
        self.register_buffer("axes", torch.zeros(dim, dim).fill_diagonal_(1))  # eye on meta imports the compiler

    def fit(self, embeddings: Tensor) -> "AxisScaler":
        """Fit to embeddings (N, D) along CLIP's coordinates, each divided by its deviation."""
        super().fit(embeddings)
        self.axes.zero_().fill_diagonal_(1)
        return self

    def fit_components(self, embeddings: Tensor, whitening: float) -> "AxisScaler":
        """Fit to embeddings (N, D) along their principal components, each divided by a power of its deviation.

        Args:
            whitening: the power. With 1 all components have the same variance, but the least; with 0.5 those of large
                variance keep more of it, so that they emerge first from the noise. The mean variance is always 1.
        """
        components = PrincipalComponents(embeddings.shape[1])
        components.fit(embeddings, 1.0)
        deviations = components.deviations
        divisors = deviations.clamp(min=LEAST_DEVIATION * deviations[0] + 1e-8) ** whitening
        mean_square = (deviations / divisors).square().mean()
        self.mean.copy_(components.mean)
        self.axes.copy_(components.directions)
        self.std.copy_(divisors * mean_square.sqrt().clamp(min=1e-8))
        return self

    def scale(self, embeddings: Tensor) -> Tensor:
        """Unit embeddings (N, D) -> their scaled coordinates along the axes (N, D)."""
        return (embeddings - self.mean) @ self.axes / self.std

    def restore(self, scaled: Tensor) -> Tensor:
        """The inverse, (N, D) -> (N, D), of any norm."""
        return (scaled * self.std) @ self.axes.T + self.mean

    def unscale(self, scaled: Tensor) -> Tensor:
        """The inverse, put back on the unit sphere where CLIP's embeddings lie."""
        return F.normalize(self.restore(scaled), dim=-1)
