"""A contender: one way of doing a piece of work, and the measurements of it."""

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

from stages.bench.workload import CPU
from stages.optim import make_optimizers, update_ema
from stages.runtime import autocast
from unclip.errors import UserError

MATRIX_SIZE = 2048
"""Height and width of the matrices whose product gives the rate that all times are compared with."""
GPU_MATRIX_SIZE = 8192
"""The same on a GPU, where their numbers are bfloat16."""


@dataclass(eq=False)
class Contender:
    name: str
    """Whose code it is."""
    call: Callable[[], Tensor | None]
    """Take one training step, and return its loss; or sample."""
    images: int
    """Images per call."""
    parameters: int
    device: torch.device = CPU
    resident_bytes: Callable[[], int] = lambda: 0
    """Return the bytes that stay allocated between calls."""
    fraction: float = 1.0
    """The share of the whole work that a call does. If it is below 1, all figures are extrapolated from it."""
    seconds: list[float] = field(default_factory=list)
    """The time of the whole work, for each round."""
    matrix_shares: list[float] = field(default_factory=list)
    """Operations per second over those of the matrix product beside it, for each round."""
    losses: list[float] = field(default_factory=list)
    operations: float = 0.0
    """Floating-point operations per image, of the whole work."""
    peak_bytes: int | None = None
    """The most bytes allocated at once; None where the system does not tell."""

    def warm_up(self) -> None:
        """Make two calls that are not timed: operations are counted in the first, memory is measured in the second."""
        # Fused attention is not counted fully, so attention is computed by matrix products here.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self._call()
        self.operations = counter.get_total_flops() / self.images / self.fraction
        self.peak_bytes = measure_peak_memory(self._call, self.resident_bytes, self.device)

    def time_round(self) -> None:
        """Time one call, after one matrix product."""
        matrix_rate = measure_matrix_rate(self.device)
        seconds = measure_seconds(self._call, self.device) / self.fraction
        self.seconds.append(seconds)
        self.matrix_shares.append(self.operations * self.images / seconds / matrix_rate)

    def _call(self) -> None:
        torch.manual_seed(0)  # for code that draws noise itself: all steps see the same
        loss = self.call()
        if loss is not None and loss.ndim == 0:
            self.losses.append(loss.item())

    def check_losses(self) -> None:
        """Raise UserError if the training steps did not lower the loss: then they were no training."""
        if self.losses and not self.losses[-1] < self.losses[0]:
            raise UserError(
                f"{self.name}: {len(self.losses)} steps took the loss from {self.losses[0]:.4g} to "
                f"{self.losses[-1]:.4g}, so this was no training and its times mean nothing; check that its batch and "
                "its loss go together"
            )

    @property
    def rate(self) -> float:
        """Images per second, by the median round."""
        return self.images / statistics.median(self.seconds)


def training_contender(name: str, model: nn.Module, loss: Callable[[], Tensor], images: int) -> Contender:
    """Return a contender that trains: loss, gradients, clipping, AdamW and moving average, equal for every model.

    On a GPU the loss is computed under autocast to bfloat16, and Python launches every kernel.
    """
    device = next(model.parameters()).device
    average = copy.deepcopy(model).requires_grad_(False)
    [optimizer] = make_optimizers(model, lr=3e-4, weight_decay=0.05, betas=(0.9, 0.99))

    def step() -> Tensor:
        model.zero_grad()
        with autocast(device, "auto" if device.type == "cuda" else "float32"):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_ema(average, model, 100, 0.999)
        return value.detach()

    def resident_bytes() -> int:
        moments = [value for state in optimizer.state.values() for value in state.values()]
        tensors = (*model.parameters(), *average.parameters(), *model.buffers(), *moments)
        return sum(tensor.nbytes for tensor in tensors)

    return Contender(name, step, images, count_parameters(model), device, resident_bytes)


def sampling_contender(
    name: str, models: list[nn.Module], sample: Callable[[], Tensor], images: int, fraction: float = 1.0
) -> Contender:
    """Return a contender that samples, or does a fraction of that."""
    resident_bytes = sum(tensor.nbytes for model in models for tensor in (*model.parameters(), *model.buffers()))
    parameters = sum(map(count_parameters, models))
    device = next(models[0].parameters()).device
    return Contender(name, torch.inference_mode()(sample), images, parameters, device, lambda: resident_bytes, fraction)


def count_parameters(model: nn.Module) -> int:
    """Count the parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_seconds(call: Callable[[], object], device: torch.device = CPU) -> float:
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def measure_matrix_rate(device: torch.device = CPU) -> float:
    """Measure the floating-point operations per second of a product of large matrices: in bfloat16 on a GPU."""
    if device.type == "cpu":
        size = MATRIX_SIZE
        matrix = torch.ones(size, size)
    else:
        size = GPU_MATRIX_SIZE
        matrix = torch.randn(size, size, device=device).bfloat16()
        matrix @ matrix  # chooses the kernel
    return 2 * size**3 / measure_seconds(lambda: matrix @ matrix, device)


def measure_peak_memory(
    call: Callable[[], None], resident_bytes: Callable[[], int], device: torch.device = CPU
) -> int | None:
    """Return the bytes that stay between calls, plus the most that a call takes beside them.

    None for the CPU's memory where the system is not Linux, which alone tells.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return resident_bytes() + torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier calls freed must not serve this one
    before = _process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    call()
    return resident_bytes() + _process_memory("VmHWM") - before


def _process_memory(name: str) -> int:
    """Return a figure of this process's memory, in bytes, from the kernel."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])
