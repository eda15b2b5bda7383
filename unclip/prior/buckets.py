"""Buckets of numbers, such as an autoregressive model predicts one by one, and the density within each."""

import torch
from torch import Tensor, nn


class QuantileBuckets(nn.Module):
    """Buckets for each of R numbers that hold equally many of its training values; fitted, not trained.

    Within a bucket values are uniform. The lowest and the highest bucket have one edge only; values beyond it fall off
    exponentially, with the mean of the training values there. So every real number has a density.
    """

    edges: Tensor
    means: Tensor
    counts: Tensor

    def __init__(self, numbers: int, buckets: int):
        super().__init__()
        self.register_buffer("edges", torch.arange(1.0, buckets).repeat(numbers, 1))  # (R, B - 1), the last repeated
        self.register_buffer("means", torch.arange(0.5, buckets).repeat(numbers, 1))  # (R, B)
        self.register_buffer("counts", torch.full((numbers,), buckets))  # (R,), how many buckets are used

    def fit(self, values: Tensor, counts: Tensor) -> None:
        """Fit to values (N, R), with at most `counts` (R,) buckets for each; fewer where values are few or repeated.

        Numbers beyond the R that are given keep their buckets.
        """
        ordered = values.cpu().double().sort(dim=0).values
        most = max(2, len(ordered) // 4)
        for row, column in enumerate(ordered.T):
            buckets = int(counts[row].clamp(2, min(most, self.means.shape[1])))
            counted = torch.arange(1, buckets, dtype=torch.float32, device="cpu")
            places = (counted * len(column) / buckets).round().long().clamp(1, max(1, len(column) - 1))
            edges = ((column[places - 1] + column[places.clamp(max=len(column) - 1)]) / 2).float().unique()
            self.edges[row] = edges[-1]
            self.edges[row, : len(edges)] = edges
            self.counts[row] = len(edges) + 1
        index = self.index(values)
        low, high = self._bounds()
        middle = torch.where(low.isinf(), high, torch.where(high.isinf(), low, (low + high) / 2))
        for row in range(values.shape[1]):
            size = torch.bincount(index[:, row], minlength=self.means.shape[1])
            total = torch.zeros_like(self.means[row]).index_add_(0, index[:, row], values[:, row].to(self.means))
            self.means[row] = torch.where(size > 0, total / size.clamp(min=1), middle[row])

    @property
    def is_used(self) -> Tensor:
        """(R, B), True for the buckets that there are."""
        return torch.arange(self.means.shape[1], device=self.means.device) < self.counts[:, None]

    def index(self, values: Tensor) -> Tensor:
        """The buckets (N, R) of the first R numbers' values (N, R)."""
        index = torch.searchsorted(self.edges[: values.shape[1]], values.T.to(self.edges).contiguous()).T
        return index.minimum(self.counts[: values.shape[1]] - 1)

    def rank(self, index: Tensor, first: int = 0) -> Tensor:
        """How far up buckets (N, R) of the numbers from the `first` on are, from 0 to 1."""
        return (index + 0.5) / self.counts[first : first + index.shape[1]]

    def mean(self, index: Tensor) -> Tensor:
        """The mean of the training values in buckets (N, R)."""
        return pick(self.means, index)

    def draw(self, index: Tensor, u: Tensor) -> Tensor:
        """Values in buckets (N, R), by uniform numbers u (N, R) in 0 .. 1."""
        low, high = (pick(bound, index) for bound in self._bounds())
        u = u.clamp(1e-6, 1 - 1e-6)
        below = high + self._scale(index) * u.log()
        above = low - self._scale(index) * (-u).log1p()
        return torch.where(low.isinf(), below, torch.where(high.isinf(), above, low + u * (high - low)))

    def log_density(self, values: Tensor) -> Tensor:
        """The logarithm of the density of values (N, R) within their buckets."""
        index = self.index(values)
        low, high = (pick(bound, index) for bound in self._bounds())
        scale = self._scale(index)
        tail = -scale.log() - torch.where(low.isinf(), high - values, values - low) / scale
        return torch.where(low.isinf() | high.isinf(), tail, -(high - low).clamp(min=1e-12).log())

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """The lower and upper edges of all buckets, both (R, B)."""
        unbounded = torch.full_like(self.means[:, :1], torch.inf)
        is_last = ~self.is_used.roll(-1, dims=1)
        is_last[:, -1] = True
        high = torch.cat([self.edges, unbounded], dim=1).masked_fill(is_last, torch.inf)
        return torch.cat([-unbounded, self.edges], dim=1), high

    def _scale(self, index: Tensor) -> Tensor:
        """The mean distance (N, R) from the edge, of buckets that have one edge only."""
        low, high = (pick(bound, index) for bound in self._bounds())
        return (self.mean(index) - torch.where(low.isinf(), high, low)).abs().clamp(min=1e-6)


def pick(table: Tensor, index: Tensor) -> Tensor:
    """table (R, B) at columns (N, R) of its first rows."""
    return table[: index.shape[1]].T.gather(0, index)
