"""Figures that tell how good embeddings are."""

import torch
from torch import Tensor


def recall_at_k(similarity: Tensor, right: Tensor, k: int) -> float:
    """Share of the rows of similarity (N, M) whose right column (N,) is among the k highest."""
    top = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return (top == right[:, None]).any(dim=1).float().mean().item()


def same_group_ceiling(embeddings: Tensor, groups: Tensor) -> float:
    """Mean cosine between two different unit embeddings (N, D) of the same group (N,): a sampler's fair ceiling.

    NaN if no group has two members.
    """
    count = int(groups.max()) + 1
    sums = torch.zeros(count, embeddings.shape[1]).index_add_(0, groups, embeddings)
    sizes = torch.bincount(groups, minlength=count)
    own = torch.zeros(count).index_add_(0, groups, (embeddings**2).sum(dim=1))
    pairs = sizes * (sizes - 1)
    return (((sums**2).sum(dim=1) - own).sum() / pairs.sum()).item()
