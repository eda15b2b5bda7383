"""The coordinates that a prior works in: CLIP embeddings along axes of their own, scaled."""

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.layers import EmbeddingScaler
from unclip.prior.principal_components import PrincipalComponents

LEAST_DEVIATION = 1e-3
"""Principal components that vary less than this share of the first are scaled as if they varied so much."""


class AxisScaler(EmbeddingScaler):
    """Scales embeddings along CLIP's own coordinates, or along the principal components of the training data.

    The statistics are stored with the weights: the axes (D, D) are orthonormal, one per column; `std` is what each is
    divided by.
    """

    axes: Tensor

    def __init__(self, dim: int):
        super().__init__(dim)
        self.register_buffer("axes", torch.eye(dim))

    def fit_components(self, embeddings: Tensor, whitening: float) -> "AxisScaler":
        """Fit to embeddings (N, D) along their principal components, each divided by a power of its deviation.

        Args:
            whitening: the power. With 1 all components have the same variance; with 0.5 those of large variance keep
                more of it, so that they emerge first from the noise. The mean variance of all is 1 with any.
        """
        components = PrincipalComponents(embeddings.shape[1])
        components.fit(embeddings, 1.0)
        deviations = components.deviations
        deviations = deviations.clamp(min=LEAST_DEVIATION * deviations[0] + 1e-8)
        divisors = deviations**whitening
        self.mean.copy_(components.mean)
        self.axes.copy_(components.directions)
        self.std.copy_(divisors * (deviations / divisors).square().mean().sqrt())
        return self

    def scale(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            return (embeddings - self.mean) @ self.axes / self.std

    def restore(self, scaled: Tensor) -> Tensor:
        """The inverse (N, D), of any norm."""
        with torch.autocast(scaled.device.type, enabled=False):
            return (scaled * self.std) @ self.axes.T + self.mean

    def unscale(self, scaled: Tensor) -> Tensor:
        """The inverse, put back on the unit sphere where CLIP's embeddings lie."""
        return F.normalize(self.restore(scaled), dim=-1)
