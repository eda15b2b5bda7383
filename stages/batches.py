"""The batches of a run. Where a GPU computes the steps, threads draw the batches of later steps meanwhile.

A batch is a pure function of the seed and the step, and is drawn on the CPU: the same on every device, however many
threads draw. Every rank draws only its own share; together the shares are the batch that one rank alone would draw.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from data.shuffling import batch_generator, shuffled_rows
from stages import runtime
from stages.cuda_graph import is_recorded
from unclip.tensor_batch import TensorBatch

PREFETCH = 8
"""Batches that are drawn at once beside a GPU, one thread each."""
T = TypeVar("T", Tensor, TensorBatch)
D = TypeVar("D")


@dataclass(frozen=True)
class StepDraw:
    """The training examples of a step, all that is random in it, and this rank's share of both."""

    rows: Tensor
    """Numbers (B,) of the training examples, over all ranks."""
    generator: torch.Generator
    """Source of small random numbers. Draw them for all B examples, so that they are the same on every rank."""
    seed: int
    step: int
    rank: int = 0
    ranks: int = 1
    streamed: Any = None
    """A data set of this step alone, whose examples `rows` counts; None where they are those of the stage's own."""
    even: bool = False
    """Whether batches are to have few shapes, as each of them is recorded by itself."""

    def examples(self, held: D) -> D:
        """The data set of which `rows` are numbers: the step's own, or else the one that the stage holds."""
        return held if self.streamed is None else self.streamed

    def share(self, values: T) -> T:
        """This rank's rows of values (B, ...)."""
        return values[self.rank :: self.ranks]

    def rounded(self, size: int, unit: int) -> int:
        """A size that varies from step to step; a multiple of `unit`, and no less, where few shapes are wanted."""
        return -(-size // unit) * unit if self.even else size

    def normal(self, *shape: int) -> Tensor:
        """Standard-normal noise (b, *shape) for this rank's examples; a row depends on its place in the batch."""
        places = range(self.rank, len(self.rows), self.ranks)
        noise = torch.empty(len(places), *shape)
        generator = torch.Generator()
        for row, place in zip(noise, places, strict=True):
            generator.manual_seed(mixed_seed(self.seed, self.step, place))
            row.normal_(generator=generator)
        return noise


def mixed_seed(*numbers: int) -> int:
    """A seed of 32 bits, all that PyTorch's CPU generator uses, from several numbers (SplitMix64's constants)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 32


def batches(stage, config, first: int, device: torch.device) -> Iterator[TensorBatch]:
    """This rank's share of the batch of each step from the first on, on the device.

    Args:
        stage: gives `batch` and `size`, see stages/loop.py.
        config: gives `steps`, `batch_size` and `seed`.
    """
    steps = range(first, config.steps)
    if device.type != "cuda":
        for step in steps:
            yield draw_batch(stage, config, step).to(device)
        return
    even = is_recorded(config, device)
    with ThreadPoolExecutor(PREFETCH, "batches", torch.set_num_threads, (1,)) as threads:
        waiting = deque()
        for step in steps:
            while len(waiting) < PREFETCH and step + len(waiting) < config.steps:
                later = step + len(waiting)
                waiting.append(threads.submit(lambda at: draw_batch(stage, config, at, even).pin_memory(), later))
            yield waiting.popleft().result().to(device, non_blocking=True)


def draw_batch(stage, config, step: int, even: bool = False) -> TensorBatch:
    """This rank's share of the batch of a step, on the CPU; `even` is of `StepDraw`."""
    rows = shuffled_rows(step, config.batch_size, stage.size, config.seed)
    generator = batch_generator(config.seed, step)
    ranks = (runtime.rank(), runtime.world_size())
    return stage.batch(StepDraw(rows, generator, config.seed, step, *ranks, even=even))
