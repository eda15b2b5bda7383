"""One way of doing a piece of work, and what is measured of it."""

import copy
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.optim import make_optimizers, update_ema
from unclip.errors import UserError

MATRIX = 2048
"""Height and width of the matrices whose product gives the rate that all is compared with."""


@dataclass(eq=False)
class Contender:
    name: str
    """Whose code it is."""
    call: Callable[[], Tensor | None]
    """One training step, which returns its loss, or a draw."""
    images: int
    """Images per call."""
    parameters: int
    kept: Callable[[], int] = lambda: 0
    """Bytes that stay between calls."""
    part: float = 1.0
    """The share of the whole work that a call does: what is extrapolated has less than 1."""
    seconds: list[float] = field(default_factory=list)
    """Of each round, for the whole work."""
    shares: list[float] = field(default_factory=list)
    """Of each round: operations per second over those of the matrix product beside it."""
    losses: list[float] = field(default_factory=list)
    operations: float = 0.0
    """Floating-point operations per image, of the whole work."""
    memory: int | None = None
    """Most bytes at once; None where the system does not tell."""

    def prepare(self) -> None:
        """Two calls that are not timed: operations are counted in the first, memory in the second."""
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # of fused ones it knows too few
            self._called()
        self.operations = counter.get_total_flops() / self.images / self.part
        self.memory = peak_memory(self._called, self.kept)

    def time(self) -> None:
        """One call beside one matrix product."""
        rate = matrix_rate()
        seconds = seconds_of(self._called) / self.part
        self.seconds.append(seconds)
        self.shares.append(self.operations * self.images / seconds / rate)

    def _called(self) -> None:
        torch.manual_seed(0)  # of those who draw their noise inside: all steps see the same
        if (loss := self.call()) is not None and loss.ndim == 0:
            self.losses.append(loss.item())

    def check(self) -> None:
        """Raise UserError if the training steps did not lower the loss: then they were not a training."""
        if self.losses and not self.losses[-1] < self.losses[0]:
            raise UserError(
                f"{self.name}: {len(self.losses)} steps took the loss from {self.losses[0]:.4g} to "
                f"{self.losses[-1]:.4g}; what was timed is no training"
            )

    @property
    def rate(self) -> float:
        """Images per second, by the median round."""
        return self.images / statistics.median(self.seconds)


def training(name: str, model: nn.Module, loss: Callable[[], Tensor], images: int) -> Contender:
    """A whole training step: loss, gradients, clipping, AdamW, moving average. The same around every model."""
    average = copy.deepcopy(model).requires_grad_(False)
    [optimizer] = make_optimizers(model, lr=3e-4, weight_decay=0.05, betas=(0.9, 0.99))

    def step() -> Tensor:
        model.zero_grad()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_ema(average, model, 100, 0.999)
        return value.detach()

    def kept() -> int:
        moments = [value for state in optimizer.state.values() for value in state.values()]
        return sum(t.nbytes for t in (*model.parameters(), *average.parameters(), *model.buffers(), *moments))

    return Contender(name, step, images, parameters_of(model), kept)


def sampling(name: str, models: list[nn.Module], draw: Callable[[], Tensor], images: int, part: float = 1.0):
    """A draw, or `part` of one."""
    kept = sum(t.nbytes for model in models for t in (*model.parameters(), *model.buffers()))
    call = torch.inference_mode()(draw)
    return Contender(name, call, images, sum(map(parameters_of, models)), lambda: kept, part)


def parameters_of(model: nn.Module) -> int:
    """Those that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def seconds_of(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def matrix_rate() -> float:
    """Floating-point operations per second of a product of large float32 matrices, now."""
    matrix = torch.ones(MATRIX, MATRIX)
    return 2 * MATRIX**3 / seconds_of(lambda: matrix @ matrix)


def peak_memory(call: Callable[[], None], kept: Callable[[], int]) -> int | None:
    """What stays between calls, and the most that a call takes beside it; None where Linux does not tell."""
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not serve this one
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is told from now on
    call()
    return kept() + _status("VmHWM") - before


def _status(name: str) -> int:
    """Bytes, as the kernel tells them of this process."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])
