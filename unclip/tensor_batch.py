"""Tensors that belong together row by row: selected and moved as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorBatch:
    """Base of dataclasses whose fields are tensors (N, ...), or such dataclasses themselves, or None."""

    def map(self, change: Callable[[Any], Any]) -> Self:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(part) for name, part in parts.items() if part is not None})

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return self.map(lambda part: part[rows])

    def split(self, parts: int) -> list[Self]:
        """The rows in so many parts; where a batch is more than its rows, it may decline, and be one part."""
        ends = [len(self) * i // parts for i in range(parts + 1)]
        return [self[begin:end] for begin, end in pairwise(ends)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in memory that a GPU reads by itself, so that a copy to it, not blocking, is not waited for."""
        return self.map(lambda part: part.pin_memory())

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, whose trailing shapes are equal; None for a field that one of them lacks."""
        columns = [[getattr(part, f.name) for part in parts] for f in fields(cls)]
        return cls(*[_cat(column) for column in columns])


def _cat(column: list[Any]) -> Any:
    if any(part is None for part in column):
        return None
    return type(column[0]).cat(column) if isinstance(column[0], TensorBatch) else torch.cat(column)
