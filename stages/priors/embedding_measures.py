"""Measures of a prior's draws in CLIP's space, beside the embeddings of real images. They know no model."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stages.evaluation.metrics import frechet_distance, in_manifold
from unclip.prior.principal_components import PrincipalComponents

BLOCKS = ((0, 8), (8, 16), (16, 32))
"""Ranges of principal components whose variances are summed."""
FEWEST = 20
"""Images of a caption from which its energy distance and its quantiles are taken."""
CENTRAL = 0.8
"""Share of the draws in whose middle a real embedding should lie as often."""


def measure_draws(
    draws: Tensor, real: Tensor, groups: Tensor, real_groups: Tensor, components: PrincipalComponents, scale: Tensor
) -> dict[str, float | list[float]]:
    """Compare drawn with real unit embeddings, (N, D) and (M, D).

    Args:
        groups, real_groups: numbers of their captions (N,) and (M,).
        components: the principal components of the training embeddings.
        scale: deviation of each coordinate (D,); distances are taken in coordinates of unit variance.
    """
    by_component = components.project(draws)
    real_by_component = components.project(real)
    variance = by_component.var(dim=0)
    real_variance = real_by_component.var(dim=0)
    quantiles = real_quantiles(by_component, real_by_component, groups, real_groups)
    scaled = draws / scale
    real_scaled = real / scale
    some_real = real_scaled[: len(scaled)]
    some_scaled = scaled[: len(real_scaled)]
    figures: dict[str, float | list[float]] = {
        "frechet": frechet_distance(scaled, real_scaled),
        "precision": in_manifold(some_scaled, some_real).float().mean().item(),
        "recall": in_manifold(some_real, some_scaled).float().mean().item(),
        "energy": mean_energy_distance(scaled, real_scaled, groups, real_groups),
        "central": ((quantiles - 0.5).abs() < CENTRAL / 2).float().mean().item() if quantiles.numel() else math.nan,
        "quantiles": (quantiles.flatten().histc(10, 0, 1) / max(1, quantiles.numel())).tolist(),
    }
    for low, high in BLOCKS:
        real_share = real_variance[low:high].sum()
        figures[f"variance_{low + 1}_to_{high}"] = (variance[low:high].sum() / real_share).item()  # NaN of none
    return figures


def shared_groups(groups: Tensor, real_groups: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of drawn and of real embeddings of each caption that has enough of both."""
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        real_rows = (real_groups == group).nonzero()[:, 0]
        if min(len(rows), len(real_rows)) >= FEWEST:
            yield rows, real_rows


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| of samples (N, D) and (M, D): 0 if their distributions are equal.

    Unbiased, so that it may fall below 0 (Szekely & Rizzo 2013).
    """
    between = torch.cdist(a, b).mean()
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return (2 * between - within[0] - within[1]).item()


def mean_energy_distance(draws: Tensor, real: Tensor, groups: Tensor, real_groups: Tensor) -> float:
    """The energy distance within a caption, averaged over the real embeddings; NaN if no caption has enough."""
    total = 0.0
    count = 0
    for rows, real_rows in shared_groups(groups, real_groups):
        total += len(real_rows) * energy_distance(draws[rows], real[real_rows])
        count += len(real_rows)
    return total / count if count else math.nan


def real_quantiles(draws: Tensor, real: Tensor, groups: Tensor, real_groups: Tensor) -> Tensor:
    """For each coordinate of real embeddings the share of the draws of its caption that lie below, (M', K).

    If the draws are distributed as the real ones, the shares are uniform. Captions without enough images are left out.
    """
    parts = [draws.new_empty(0, draws.shape[1])]
    for rows, real_rows in shared_groups(groups, real_groups):
        below = torch.searchsorted(draws[rows].T.contiguous().sort(dim=1).values, real[real_rows].T.contiguous())
        parts.append((below.T + 0.5) / (len(rows) + 1))
    return torch.cat(parts)
