"""Noise levels: those of `unclip.diffusion.process` and `unclip.diffusion.spacing`, computed by NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unclip.errors import UserError
from unclip.settings import FastDecoderSettings

SIGMA_RANGE = (80.0, 0.02)
RHO = 7.0


class Level(NamedTuple):
    """One noise level: x = alpha x_0 + sigma noise at time t, of which the network is told `network_time`."""

    t: float
    alpha: float
    sigma: float
    network_time: float


CLEAN = Level(0.0, 1.0, 0.0, 0.0)


@dataclass
class Process:
    """The variance-preserving process with this table of alpha^2, or the straight path for None."""

    alphas_cumprod: np.ndarray | None

    @property
    def timesteps(self) -> int:
        return 0 if self.alphas_cumprod is None else len(self.alphas_cumprod)

    def level(self, t: float) -> Level:
        if self.alphas_cumprod is None:
            return Level(t, 1 - t, t, 1000 * t)
        step = round(t * self.timesteps) - 1
        abar = self.alphas_cumprod[step]
        return Level(t, float(np.sqrt(abar)), float(np.sqrt(1 - abar)), step)

    def time_at_share(self, share: float) -> float:
        """The time that is a share 0 .. 1 of the way from the cleanest time that is trained to pure noise."""
        if self.alphas_cumprod is None:
            return share
        return (share * (self.timesteps - 1) + 1) / self.timesteps

    def distinct_times_at(self, ratios: Sequence[float]) -> list[float]:
        """The times at which sigma / alpha has these descending values, strictly descending."""
        if self.alphas_cumprod is None:
            return [ratio / (1 + ratio) for ratio in ratios]
        logarithms = 0.5 * np.log(1 / self.alphas_cumprod - 1)
        boundaries = (logarithms[1:] + logarithms[:-1]) / 2
        with np.errstate(divide="ignore"):  # the logarithm of no noise is below all boundaries
            steps = np.searchsorted(boundaries, np.log(ratios), side="left").tolist()
        count = len(steps)
        for i in range(1, count):
            steps[i] = min(steps[i], steps[i - 1] - 1)
        return [(max(step, count - 1 - i) + 1) / self.timesteps for i, step in enumerate(steps)]

    def even_levels(self, steps: int) -> list[Level]:
        self.check_steps(steps)
        if self.alphas_cumprod is None:
            return [*(self.level(1 - i / steps) for i in range(steps)), CLEAN]
        count = self.timesteps
        return [*(self.level(round(count - i * count / steps) / count) for i in range(steps)), CLEAN]

    def karras_levels(self, steps: int) -> list[Level]:
        self.check_steps(steps)
        highest, lowest = np.array(SIGMA_RANGE) ** (1 / RHO)
        ratios = (highest + (lowest - highest) * np.linspace(0, 1, steps)) ** RHO
        return [*map(self.level, self.distinct_times_at(ratios.tolist())), CLEAN]

    def spaced_levels(self, spacing: str, steps: int) -> list[Level]:
        return self.karras_levels(steps) if spacing == "karras" else self.even_levels(steps)

    def consistency_levels(self, settings: FastDecoderSettings) -> list[Level]:
        """The levels of the fast decoder's calls."""
        second, last = settings.levels
        further = settings.steps - 1
        shares = [0.5] if further == 1 else [i / (further - 1) for i in range(further)]
        ratios = [SIGMA_RANGE[0], *(second ** (1 - share) * last**share for share in shares)]
        return [*map(self.level, self.distinct_times_at(ratios)), CLEAN]

    def check_steps(self, steps: int) -> None:
        if self.alphas_cumprod is not None and steps > self.timesteps:
            raise UserError(f"steps must be between 1 and {self.timesteps}, not {steps}")
