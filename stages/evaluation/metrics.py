"""Metrics of embeddings and images: plain functions of tensors. They know no model and draw no random numbers."""

import math

import torch
from torch import Tensor

Z = 1.959964
"""The 97.5% quantile of the normal distribution: a 95% interval reaches so many standard errors to either side."""
LEAST_GAP = 0.01
"""The smallest gap between two mean cosines of which a share is taken."""


def recall_at_k(similarity: Tensor, right: Tensor, k: int) -> float:
    """Return the share of rows that have a right column among their k most similar ones.

    `similarity` is (N, M); `right` (N, M) is True for the right columns of each row.
    """
    top = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return right.gather(1, top).any(dim=1).float().mean().item()


def same_group_cosine(embeddings: Tensor, groups: Tensor) -> Tensor:
    """Return the mean cosine (N,) of each unit embedding (N, D) to the others of its group (N,).

    It is NaN where a group has no other. If the embeddings are those of real images, grouped by caption, this is the
    cosine that samples reach if they vary as real images do; samples that vary less reach more.
    """
    count = int(groups.max()) + 1
    sums = torch.zeros(count, embeddings.shape[1]).index_add_(0, groups, embeddings)[groups]  # (N, D)
    others = torch.bincount(groups, minlength=count)[groups] - 1  # (N,)
    return ((embeddings * sums).sum(dim=1) - (embeddings**2).sum(dim=1)) / others


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """Return the distance between the centres of image embeddings (N, D) and text embeddings (M, D).

    Liang et al. 2022, arXiv 2203.02053.
    """
    return (images.mean(dim=0) - texts.mean(dim=0)).norm().item()


def share_with_interval(outcomes: Tensor) -> dict[str, float]:
    """Return the share of True in bool outcomes (N,) with Wilson's 95% interval: {"value", "low", "high", "n"}.

    All but n are NaN if there are no outcomes.
    """
    n = len(outcomes)
    if n == 0:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    p = outcomes.double().mean().item()
    centre = p + Z**2 / (2 * n)
    half_width = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = ((centre + sign * half_width) / (1 + Z**2 / n) for sign in (-1, 1))
    return {"value": p, "low": max(0.0, min(low, p)), "high": min(1.0, max(high, p)), "n": n}


def mean_with_interval(values: Tensor) -> dict[str, float]:
    """Return the mean of values (N,) with the normal 95% interval: {"value", "low", "high", "n"}.

    NaN values are left out, such as the ceiling of an image whose caption no other image has. The interval is NaN for
    fewer than two values, and so is the mean of none.
    """
    values = values[~values.isnan()].double()
    mean = values.mean().item()
    if len(values) < 2:
        return {"value": mean, "low": math.nan, "high": math.nan, "n": len(values)}
    half_width = Z * values.std().item() / math.sqrt(len(values))
    return {"value": mean, "low": mean - half_width, "high": mean + half_width, "n": len(values)}


def share_of_gap(values: Tensor, floors: Tensor, ceilings: Tensor) -> dict[str, float]:
    """Return how far values are on the way from floor to ceiling: mean(values - floors) / mean(ceilings - floors).

    All three are (N,); rows with a NaN are left out. 0 is the floor and 1 the ceiling; values beyond both are possible.
    The 95% interval is that of a ratio of means, by the delta method. The share is NaN, with n 0, if the gap is below
    LEAST_GAP or within its own interval.
    """
    gains = (values - floors).double()
    gaps = (ceilings - floors).double()
    is_known = ~(gains + gaps).isnan()
    mean_gap = mean_with_interval(gaps[is_known])
    if not mean_gap["low"] > 0 or mean_gap["value"] < LEAST_GAP:
        return mean_with_interval(values[:0])
    ratio = gains[is_known].mean() / mean_gap["value"]
    return mean_with_interval(ratio + (gains - ratio * gaps)[is_known] / mean_gap["value"])


def distance_of_draws(sample: Tensor, redrawn: Tensor, ceiling: Tensor) -> float:
    """Return the distance between the samples for a caption and its images, as distributions, on average over captions.

    It is about 0 for samples that vary as the images do, around the same mean; 1 for a prior that returns nothing but
    the mean image of a caption; and more for one that is far off.

    This is the Frechet distance between two distributions of unit vectors whose covariances differ in scale alone,
    |m_a - m_b|^2 + (s_a - s_b)^2, divided by the variance s_b^2 of the images. All of it follows from mean cosines,
    each (N,): `sample`, of a sample and an image of the caption, is m_a m_b; `redrawn`, of two samples, is |m_a|^2;
    `ceiling`, of two images, is |m_b|^2; and s^2 = 1 - |m|^2. Rows with a NaN are left out. The distance is NaN if the
    images of a caption hardly differ.
    """
    is_known = ~(sample + redrawn + ceiling).isnan()
    m_ab, m_aa, m_bb = (cosines[is_known].double().mean().item() for cosines in (sample, redrawn, ceiling))
    if not 1 - m_bb >= LEAST_GAP:
        return math.nan
    s_a = math.sqrt(max(0.0, 1 - m_aa))
    s_b = math.sqrt(1 - m_bb)
    return (m_aa + m_bb - 2 * m_ab + (s_a - s_b) ** 2) / s_b**2


def confusion_matrix(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Count labels (N,): the row is the true class and the column the predicted one, (classes, classes)."""
    return torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes)


def mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the covariance (D, D) of features (N, D), in float64."""
    features = features.double()
    return features.mean(dim=0), features.T.cov().reshape(features.shape[1], features.shape[1])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Frechet distance between Gaussians fitted to features (N, D) and (M, D).

    Heusel et al. 2017, eq. 6: |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2). The trace of the root is the sum of the roots of
    the eigenvalues of A^1/2 B A^1/2, which is symmetric, so no general matrix root is needed.
    """
    mean_a, cov_a = mean_and_covariance(a)
    mean_b, cov_b = mean_and_covariance(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    root_trace = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root_trace).item()


def nearest_neighbours(queries: Tensor, points: Tensor, k: int = 1, chunk: int = 1000) -> tuple[Tensor, Tensor]:
    """Find the k points of (M, D) nearest to each query (N, D): Euclidean distances and rows of the points, (N, k)."""
    parts = [torch.cdist(part, points).topk(k, dim=1, largest=False) for part in queries.split(chunk)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def in_manifold(queries: Tensor, points: Tensor, k: int = 3, chunk: int = 1000) -> Tensor:
    """Tell which queries (N, D) lie in the manifold of the points (M, D): bool (N,).

    The manifold is the union of balls around the points, each reaching to its k-th nearest other point (Kynkaanniemi et
    al. 2019, eq. 1-3). Its mean is precision for in_manifold(generated, real), recall for in_manifold(real, generated).
    """
    radii = nearest_neighbours(points, points, k + 1, chunk)[0][:, -1]  # the nearest point is the point itself
    return torch.cat([(torch.cdist(part, points) <= radii).any(dim=1) for part in queries.split(chunk)])
