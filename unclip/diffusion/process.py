"""The forward process: x_t = alpha(t) x_0 + sigma(t) noise, with float times t from 0 (clean) to 1 (pure noise).

A process knows no model. Samplers are given its levels (alpha, sigma), training batches its random noise levels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from unclip.diffusion.schedules import Schedule, make_betas
from unclip.errors import UserError
from unclip.fields import bounded
from unclip.tensor_batch import TensorBatch

Prediction = Literal["x0", "eps", "v", "velocity"]
TimeT = TypeVar("TimeT", float, Tensor)
ProcessName = Literal["variance_preserving", "straight"]


class Level(NamedTuple):
    """One noise level of a sampling: x = alpha x_0 + sigma noise at time t."""

    t: float
    alpha: float
    sigma: float


CLEAN = Level(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class NoiseLevels(TensorBatch):
    """The noise levels of a training batch, one per example, each (B,) in float32."""

    time: Tensor
    """The time as the network is told it: `Process.network_time`."""
    alpha: Tensor
    sigma: Tensor


class Process(ABC):
    """Base of the processes. A subclass defines alpha and sigma, how times are spaced, and what the network is told."""

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at times t, each of the shape of t, in float64."""

    @abstractmethod
    def network_time(self, t: TimeT) -> TimeT:
        """The number that a network is told for a time, or for a tensor of times: near 0 for clean samples."""

    @abstractmethod
    def even_times(self, steps: int) -> list[float]:
        """Descending times, evenly spaced from pure noise on, without the clean end."""

    def check_steps(self, steps: int, name: str = "steps") -> None:
        """Raise UserError for a number of steps in which noise cannot be turned into a sample; `name` is the option."""
        if steps < 1:
            raise UserError(f"{name} must be at least 1, not {steps}")

    @abstractmethod
    def times_at(self, noise_to_signal: Tensor) -> Tensor:
        """The times at which sigma / alpha has these values, of their shape."""

    def distinct_times_at(self, noise_to_signal: Tensor) -> list[float]:
        """The same for descending values, as a strictly descending list."""
        return self.times_at(noise_to_signal).tolist()

    def uniform_times(self, u: Tensor) -> Tensor:
        """The times for numbers u in [0, 1), drawn uniformly."""
        return u

    def time_at_share(self, share: float) -> float:
        """The time that is a share 0 .. 1 of the way from the cleanest time that is trained to pure noise."""
        return share

    def spread_times(self, count: int) -> list[float]:
        """Ascending times, evenly spread from the cleanest time that is trained to pure noise, both included."""
        return [self.time_at_share(i / max(1, count - 1)) for i in range(count)]

    def level(self, t: float) -> Level:
        alpha, sigma = self.alpha_sigma(torch.tensor(t, dtype=torch.float64, device="cpu"))
        return Level(t, alpha.item(), sigma.item())

    def draw_levels(
        self, batch: int, generator: torch.Generator, log_sigma: tuple[float, float] | None = None
    ) -> NoiseLevels:
        """Draw stratified noise levels to train at: one in each of B equally likely slices lowers the loss's variance.

        Args:
            log_sigma: mean and deviation of ln(sigma / alpha) for log-normal noise (Karras et al. 2022, arXiv
                2206.00364, section 5); None for uniform times.
        """
        offsets = torch.rand(batch, generator=generator, dtype=torch.float32, device="cpu")
        slices = torch.arange(batch, dtype=torch.float64, device="cpu")
        u = (slices + offsets) / batch  # in float32 the last u would round to 1 now and then
        if log_sigma is None:
            t = self.uniform_times(u)
        else:
            mean, deviation = log_sigma
            t = self.times_at(torch.exp(mean + deviation * torch.special.ndtri(u)))
        alpha, sigma = self.alpha_sigma(t)
        return NoiseLevels(self.network_time(t).float(), alpha.float(), sigma.float())


class VariancePreserving(Process):
    """alpha^2 + sigma^2 = 1, from a table of T steps (Ho et al. 2020).

    Step i of the table, 0 .. T-1, lies at time (i + 1) / T. Between steps alpha^2 is interpolated linearly. All spaced
    and drawn times are times of the table.
    """

    def __init__(self, timesteps: int = 1000, schedule: Schedule = "cosine"):
        if timesteps < 2:
            raise UserError(f"diffusion needs at least 2 timesteps, not {timesteps}")
        self.timesteps = timesteps
        self.alphas_cumprod = torch.cumprod(1 - make_betas(schedule, timesteps), dim=0)  # (T,), float64
        self.log_sigmas = 0.5 * (1 / self.alphas_cumprod - 1).log()  # ln(sigma / alpha), ascending

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod])  # (T + 1,)
        position = (t.double() * self.timesteps).clamp(0, self.timesteps)
        nearest = position.round()
        position = torch.where((position - nearest).abs() < 1e-6, nearest, position)  # exact at the table's own times
        below = position.floor().long()
        above = position.ceil().long()
        abar = torch.lerp(table[below], table[above], position - below)
        return abar.sqrt(), (1 - abar).sqrt()

    def network_time(self, t: TimeT) -> TimeT:
        """The step of the table, 0 .. T-1."""
        return t * self.timesteps - 1

    def time_at_share(self, share: float) -> float:
        return (share * (self.timesteps - 1) + 1) / self.timesteps

    def spread_times(self, count: int) -> list[float]:
        return [(round(i * (self.timesteps - 1) / max(1, count - 1)) + 1) / self.timesteps for i in range(count)]

    def even_times(self, steps: int) -> list[float]:
        """Evenly spaced steps from the last one on ("trailing": Lin et al. 2023, table 2)."""
        return [round(self.timesteps - i * self.timesteps / steps) / self.timesteps for i in range(steps)]

    def times_at(self, noise_to_signal: Tensor) -> Tensor:
        """The table's times that are nearest on a logarithmic scale."""
        return (self._steps_at(noise_to_signal) + 1) / self.timesteps

    def distinct_times_at(self, noise_to_signal: Tensor) -> list[float]:
        """Where neighbours fall on one time they are moved apart, so that T values give all times."""
        count = len(noise_to_signal)
        steps = self._steps_at(noise_to_signal).tolist()
        for i in range(1, count):
            steps[i] = min(steps[i], steps[i - 1] - 1)
        return [(max(step, count - 1 - i) + 1) / self.timesteps for i, step in enumerate(steps)]

    def uniform_times(self, u: Tensor) -> Tensor:
        steps = (u * self.timesteps).long().clamp(max=self.timesteps - 1)
        return (steps.double() + 1) / self.timesteps

    def _steps_at(self, noise_to_signal: Tensor) -> Tensor:
        boundaries = (self.log_sigmas[1:] + self.log_sigmas[:-1]) / 2
        return torch.bucketize(noise_to_signal.double().log(), boundaries).double()

    def check_steps(self, steps: int, name: str = "steps") -> None:
        if not 1 <= steps <= self.timesteps:
            raise UserError(f"{name} must be between 1 and {self.timesteps}, not {steps}")


class StraightPath(Process):
    """alpha = 1 - t, sigma = t: straight lines from data to noise, rectified flow (Liu et al. 2022, 2209.03003)."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t

    def network_time(self, t: TimeT) -> TimeT:
        return 1000 * t

    def even_times(self, steps: int) -> list[float]:
        return [1 - i / steps for i in range(steps)]

    def times_at(self, noise_to_signal: Tensor) -> Tensor:
        return noise_to_signal / (1 + noise_to_signal)


@dataclass(frozen=True)
class ProcessConfig:
    """The process that a diffusion model is trained with, and what its network predicts."""

    process: ProcessName = "variance_preserving"
    """Forward process: variance_preserving, or straight lines from data to noise (rectified flow)."""
    timesteps: int = bounded(1000, 2, 10_000)
    """Steps in the table of the variance-preserving process."""
    schedule: Schedule = "cosine"
    """Noise schedule of the variance-preserving process."""
    prediction: Prediction = "v"
    """Prediction of the network: x0, eps or v; on the straight path x0 or velocity."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.process == "straight" and self.prediction not in ("x0", "velocity"):
            yield "prediction", "be x0 or velocity on the straight path"
        if self.process == "variance_preserving" and self.prediction == "velocity":
            yield "prediction", "be x0, eps or v for the variance-preserving process"

    def build(self) -> Process:
        return StraightPath() if self.process == "straight" else VariancePreserving(self.timesteps, self.schedule)
