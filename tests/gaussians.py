"""A Gaussian whose exact denoiser, and whose exact path from noise to data, are known in closed form."""

import math

import torch
from torch import Tensor

from unclip.diffusion import CLEAN, Denoised, Level, Process, StraightPath, VariancePreserving

MEAN, DEVIATION = 0.4, 0.5
NORMALS = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
SCHEDULES = ("cosine", "linear", "sigmoid")
PROCESSES = {name: VariancePreserving(1000, name) for name in SCHEDULES} | {"straight": StraightPath()}


def denoise(x: Tensor, level: Level) -> Denoised:
    """E[x_0 | x] for x_0 ~ N(MEAN, DEVIATION^2): the best denoiser there is, for any process."""
    gain = level.alpha * DEVIATION**2 / (level.alpha**2 * DEVIATION**2 + level.sigma**2)
    return Denoised(MEAN + gain * (x - level.alpha * MEAN))


def quantiles(level: Level) -> Tensor:
    """Where the probability-flow ODE carries NORMALS: to the same quantiles of q(x_t)."""
    return level.alpha * MEAN + math.hypot(level.alpha * DEVIATION, level.sigma) * NORMALS


def levels_at(process: Process, *steps: int, clean: bool = True) -> list[Level]:
    """The levels of these steps of a table of 1000, and the clean one."""
    return [process.level((step + 1) / 1000) for step in steps] + [CLEAN] * clean
