"""Figures that tell how good embeddings are."""

import torch
from torch import Tensor


def recall_at_k(similarity: Tensor, right: Tensor, k: int) -> float:
    """Share of the rows of similarity (N, M) that have a right column, right (N, M) bool, among their k highest."""
    top = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return right.gather(1, top).any(dim=1).float().mean().item()


def same_group_cosine(embeddings: Tensor, groups: Tensor) -> Tensor:
    """Mean cosine (N,) of each unit embedding (N, D) to the others of its group (N,); NaN where there is no other.

    For groups of one caption it is the fair ceiling of what a sampler can reach.
    """
    count = int(groups.max()) + 1
    sums = torch.zeros(count, embeddings.shape[1]).index_add_(0, groups, embeddings)[groups]  # (N, D)
    others = torch.bincount(groups, minlength=count)[groups] - 1  # (N,)
    return ((embeddings * sums).sum(dim=1) - (embeddings**2).sum(dim=1)) / others
