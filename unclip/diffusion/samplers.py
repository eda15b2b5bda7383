"""Samplers: plain functions that turn noise into a sample with any denoise(x, level), on any trailing shape.

All take `levels`, from the noisiest down to the clean one, which is the last (`unclip.diffusion.spacing` makes such
lists), and `noise`, a function of x that returns standard-normal noise of its shape. They know neither model nor
process: a level says all that a step needs, alpha and sigma.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unclip.diffusion.process import Level


class Denoised(NamedTuple):
    """A denoiser's answer at x."""

    x0: Tensor
    """The predicted clean sample."""
    log_variance: Tensor | None = None
    """The logarithm of the variance of the next step down, where the network has learned it."""


Denoise = Callable[[Tensor, Level], Denoised]
Noise = Callable[[Tensor], Tensor]


def step_down(level: Level, lower: Level) -> tuple[float, float]:
    """How one step of the forward process leads from `lower` up to `level`: its alpha, and its variance.

    x = alpha x_lower + sqrt(variance) noise (Kingma et al. 2021, arXiv 2107.00630, eq. 20-21).
    """
    alpha = level.alpha / lower.alpha
    return alpha, level.sigma**2 - alpha**2 * lower.sigma**2


def posterior(x0: Tensor, x: Tensor, level: Level, lower: Level) -> tuple[Tensor, Tensor]:
    """Mean and variance () of q(x_lower | x, x_0) (Ho et al. 2020, eq. 6-7; Kingma et al. 2021, eq. 25-26)."""
    alpha, variance = step_down(level, lower)
    mean_x0 = lower.alpha * variance / level.sigma**2
    mean_x = alpha * lower.sigma**2 / level.sigma**2
    return mean_x0 * x0 + mean_x * x, x.new_tensor(variance * lower.sigma**2 / level.sigma**2)


def ddpm(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise = torch.randn_like) -> Tensor:
    """Ancestral sampling from the posterior (Ho et al. 2020, algorithm 2), over any levels.

    A log-variance that the denoiser gives takes the place of the posterior's (Nichol & Dhariwal 2021, section 3.1).
    """
    for level, lower in pairwise(levels):
        denoised = denoise(x, level)
        mean, variance = posterior(denoised.x0, x, level, lower)
        if denoised.log_variance is not None:
            variance = denoised.log_variance.exp()
        x = mean if lower.sigma == 0 else mean + variance.sqrt() * noise(x)
    return x


def ddim(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise = torch.randn_like, eta: float = 0.0
) -> Tensor:
    """Song et al. 2020, eq. 12 and 16: deterministic for eta = 0, as noisy as DDPM for eta = 1.

    The noise in x is taken from the predicted x0 (clipped, if the denoiser clips), so that the two always agree with x.
    On the straight path, with eta = 0, it is the Euler method.
    """
    for level, lower in pairwise(levels):
        x0 = denoise(x, level).x0
        eps = (x - level.alpha * x0) / level.sigma
        _, step_variance = step_down(level, lower)
        variance = eta**2 * lower.sigma**2 / level.sigma**2 * step_variance
        x = lower.alpha * x0 + math.sqrt(max(lower.sigma**2 - variance, 0.0)) * eps
        if variance > 0:
            x = x + math.sqrt(variance) * noise(x)
    return x


def dpmpp(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise = torch.randn_like) -> Tensor:
    """DPM-Solver++(2M), deterministic (Lu et al. 2022, algorithm 2); first order in the first and the last step."""
    previous = None
    h_last = 0.0
    for level, lower in pairwise(levels):
        x0 = denoise(x, level).x0
        if lower.sigma == 0:  # lambda is infinite at the clean sample: the step lands on x0 itself
            return x0
        h = log_snr(lower) - log_snr(level)
        # Lu et al. 2022, eq. 12: extrapolate x0 linearly in lambda from the last two predictions.
        target = x0 if previous is None else x0 + h / (2 * h_last) * (x0 - previous)
        x = lower.sigma / level.sigma * x - lower.alpha * math.expm1(-h) * target
        previous = x0
        h_last = h
    return x


def consistency(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise = torch.randn_like) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1): to x0, and up with new noise.

    Meant for a consistency model, whose x0 is a sample and not the mean of many.
    """
    for level, lower in pairwise(levels):
        x = denoise(x, level).x0
        if lower.sigma > 0:
            x = lower.alpha * x + lower.sigma * noise(x)
    return x


def log_snr(level: Level) -> float:
    """lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio; -inf for pure noise."""
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf
