"""Figures that tell how good embeddings and images are. Plain functions of tensors; they know no model.

Nothing here draws random numbers.
"""

import math

import torch
from torch import Tensor

Z = 1.959964  # the normal distribution's 97.5% quantile: what a 95% interval takes
LEAST_GAP = 0.01  # between cosines: of less there is no share to speak of


def recall_at_k(similarity: Tensor, right: Tensor, k: int) -> float:
    """Share of the rows of similarity (N, M) that have a right column, right (N, M) bool, among their k highest."""
    top = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return right.gather(1, top).any(dim=1).float().mean().item()


def same_group_cosine(embeddings: Tensor, groups: Tensor) -> Tensor:
    """Mean cosine (N,) of each unit embedding (N, D) to the others of its group (N,); NaN where there is no other.

    For groups of one caption it is what draws that vary as real images do reach; draws that vary less reach more.
    """
    count = int(groups.max()) + 1
    sums = torch.zeros(count, embeddings.shape[1]).index_add_(0, groups, embeddings)[groups]  # (N, D)
    others = torch.bincount(groups, minlength=count)[groups] - 1  # (N,)
    return ((embeddings * sums).sum(dim=1) - (embeddings**2).sum(dim=1)) / others


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """Distance between the centres of image embeddings (N, D) and text embeddings (M, D) (Liang et al. 2022)."""
    return (images.mean(dim=0) - texts.mean(dim=0)).norm().item()


def share(right: Tensor) -> dict[str, float]:
    """The share of True in right (N,), with Wilson's 95% interval: {"value", "low", "high", "n"}; NaN of none."""
    n, p = len(right), right.double().mean().item()
    if n == 0:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = ((centre + sign * half) / (1 + Z**2 / n) for sign in (-1, 1))
    return {"value": p, "low": max(0.0, min(low, p)), "high": min(1.0, max(high, p)), "n": n}


def mean(values: Tensor) -> dict[str, float]:
    """The mean of values (N,), NaN left out, with the normal 95% interval: {"value", "low", "high", "n"}.

    Of fewer than two values, as where no two images share a caption, there is no interval, and of none no mean: NaN.
    """
    values = values[~values.isnan()].double()
    if len(values) < 2:
        return {"value": values.mean().item(), "low": math.nan, "high": math.nan, "n": len(values)}
    m, half = values.mean().item(), Z * values.std().item() / math.sqrt(len(values))
    return {"value": m, "low": m - half, "high": m + half, "n": len(values)}


def share_of_gap(values: Tensor, floors: Tensor, ceilings: Tensor) -> dict[str, float]:
    """How much of the way from floor to ceiling is gone: mean(values - floors) / mean(ceilings - floors), each (N,).

    0 is the floor, 1 the ceiling; beyond both is possible. Rows in which one is NaN are left out. The 95% interval is
    that of a ratio of means, by the delta method. NaN, with n 0, where the gap is below LEAST_GAP or within its own
    interval.
    """
    gained, gap = (values - floors).double(), (ceilings - floors).double()
    known = ~(gained + gap).isnan()
    size = mean(gap[known])
    if not size["low"] > 0 or size["value"] < LEAST_GAP:
        return mean(values[:0])
    ratio = gained[known].mean() / size["value"]
    return mean(ratio + (gained - ratio * gap)[known] / size["value"])


def distance_of_draws(sample: Tensor, redrawn: Tensor, ceiling: Tensor) -> float:
    """How far the draws for a caption lie from its images, as distributions, on average over captions.

    About 0 for draws that vary as the images do, around the same mean; 1 for a prior that draws nothing but the mean
    image of a caption; more for one that is far off. It is the Frechet distance of two distributions of unit vectors
    whose covariances differ in scale alone, |m_a - m_b|^2 + (s_a - s_b)^2, over the images' s_b^2. All of it follows
    from mean cosines: `sample` of a draw and an image of the caption is m_a m_b, `redrawn` of two draws |m_a|^2,
    `ceiling` of two images |m_b|^2, each (N,), and s^2 = 1 - |m|^2. Rows in which one is NaN are left out. NaN where
    the images of a caption hardly differ.
    """
    known = ~(sample + redrawn + ceiling).isnan()
    both, a, b = (values[known].double().mean().item() for values in (sample, redrawn, ceiling))
    if not 1 - b >= LEAST_GAP:
        return math.nan
    spread_a, spread_b = math.sqrt(max(0.0, 1 - a)), math.sqrt(1 - b)
    return (a + b - 2 * both + (spread_a - spread_b) ** 2) / spread_b**2


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts (classes, classes): row = true class, column = predicted class, of labels (N,) each."""
    return torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64."""
    features = features.double()
    return features.mean(dim=0), features.T.cov().reshape(features.shape[1], features.shape[1])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features (N, D) and (M, D) (Heusel et al. 2017, eq. 6).

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2). The trace of the root is the sum of the roots of the eigenvalues of
    A^1/2 B A^1/2, which is symmetric, so that no general matrix root is needed.
    """
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def nearest(a: Tensor, b: Tensor, k: int = 1, chunk: int = 1000) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N, k) from each row of a (N, D) to its k nearest rows of b (M, D), and their indices."""
    parts = [torch.cdist(part, b).topk(k, dim=1, largest=False) for part in a.split(chunk)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def coverage(inside: Tensor, of: Tensor, k: int = 3, chunk: int = 1000) -> Tensor:
    """Which rows of `inside` (N, D) lie in the manifold of `of` (M, D): bool (N,).

    The manifold is the union of balls around the rows, each reaching to its k-th nearest other row (Kynkaanniemi et al.
    2019, eq. 1-3). coverage(generated, real) is precision, coverage(real, generated) recall.
    """
    radius = nearest(of, of, k + 1, chunk)[0][:, -1]  # the nearest row is the row itself
    return torch.cat([(torch.cdist(part, of) <= radius).any(dim=1) for part in inside.split(chunk)])
