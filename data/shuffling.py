"""The order of a training's data: a pure function of seed and step, so that a resumed run sees the same batches."""

from functools import lru_cache

import torch
from torch import Tensor


def batch_generator(seed: int, step: int) -> torch.Generator:
    """The generator of everything random in a step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step + 1)


def shuffled_rows(step: int, batch_size: int, size: int, seed: int) -> Tensor:
    """The rows (batch_size,) of the batch at a step, from a data set of `size` rows.

    Each epoch is a new permutation. A batch may end one epoch and begin the next.
    """
    start = step * batch_size
    remaining = batch_size
    parts = []
    while remaining > 0:
        epoch, offset = divmod(start, size)
        part = permutation(size, seed, epoch)[offset : offset + remaining]
        parts.append(part)
        start += len(part)
        remaining -= len(part)
    return torch.cat(parts)


@lru_cache(maxsize=2)
def permutation(size: int, seed: int, epoch: int) -> Tensor:
    """The order (size,) in which an epoch takes the numbers below `size`."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
