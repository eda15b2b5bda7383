"""Samplers: plain functions that turn noise into a sample with any denoise(x, t) -> x0, on any trailing shape.

All take `timesteps`, the descending integer times to visit; after the last of them comes the clean sample. All take
`noise`, a function of x that returns standard-normal noise of its shape (`RowNoise` makes every row depend on its own
seed). What else happens is a closure around the model or the denoiser: `guided`, `on_interval`, `watch`.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from unclip.diffusion import GaussianDiffusion
from unclip.errors import UserError

Denoise = Callable[[Tensor, int], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]


def spaced_timesteps(timesteps: int, steps: int, name: str = "steps") -> list[int]:
    """`steps` descending times from T-1, evenly spaced ("trailing": Lin et al. 2023, table 2). steps = T visits all."""
    if not 1 <= steps <= timesteps:
        raise UserError(f"{name} must be between 1 and {timesteps}, not {steps}")
    return [round(timesteps - i * timesteps / steps) - 1 for i in range(steps)]


PRIOR_STREAM, DECODER_STREAM = 1, 2  # equal seeds give the two stages unrelated noise


class RowNoise:
    """Standard-normal noise in which row i depends on seeds[i] (and on how often it was asked) alone.

    Args:
        seeds: one non-negative integer per row.
        stream: names the use, so that equal seeds give unrelated noise to the prior and to the decoder.

    The numbers are drawn on the CPU, so that every device starts from the same noise.
    """

    def __init__(self, seeds: Sequence[int], *stream: int):
        states = [int(np.random.SeedSequence([int(s), *stream]).generate_state(1, np.uint64)[0]) for s in seeds]
        self.generators = [torch.Generator().manual_seed(state >> 1) for state in states]

    def __call__(self, x: Tensor) -> Tensor:
        rows = [torch.randn(x.shape[1:], generator=g) for g in self.generators]
        return torch.stack(rows).to(x.device, x.dtype)


def guided(model, scale: float):
    """Classifier-free guidance (Ho & Salimans 2022) as a closure around model(x, t).

    The model must be conditioned on 2B rows: B conditions, then the B nulls that belong to them. Both halves go through
    it in one batch. scale = 1 is the conditional model, 0 the unconditional one.
    """

    def guided_model(x: Tensor, t: Tensor) -> Tensor:
        conditional, null = model(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        return torch.lerp(null, conditional, scale)

    return guided_model


def on_interval(inside, outside, low: float, high: float):
    """model(x, t) that is `inside` at times low <= t <= high and `outside` at all others.

    Guidance helps at middle noise levels alone: at high ones it costs variety, at low ones nothing is left to decide
    (Kynkaanniemi et al. 2024, arXiv 2404.07724). The others are cheaper without.
    """
    return lambda x, t: inside(x, t) if low <= t[0] <= high else outside(x, t)


def watch(denoise: Denoise, on_step: OnStep | None) -> Denoise:
    """The same denoiser, which tells `on_step(t, x_t, predicted x0)` of every call; for None the denoiser itself."""

    def watched(x: Tensor, t: int) -> Tensor:
        x0 = denoise(x, t)
        on_step(t, x, x0)
        return x0

    return watched if on_step else denoise


def _steps(timesteps: Sequence[int]):
    """Pairs (t, next t), the last next being -1: the clean sample."""
    return zip(timesteps, [*timesteps[1:], -1], strict=True)


def ddpm(
    denoise: Denoise,
    x: Tensor,
    diffusion: GaussianDiffusion,
    timesteps: Sequence[int],
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Ancestral sampling from the posterior (Ho et al. 2020, algorithm 2), over any subset of the times."""
    for t, t_prev in _steps(timesteps):
        x0 = denoise(x, t)
        mean, variance = diffusion.posterior(x0, x, t, t_prev)
        x = mean if t_prev < 0 else mean + variance.sqrt() * noise(x)
    return x


def ddim(
    denoise: Denoise,
    x: Tensor,
    diffusion: GaussianDiffusion,
    timesteps: Sequence[int],
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
    eta: float = 0.0,
) -> Tensor:
    """Song et al. 2020, eq. 12 and 16: deterministic for eta = 0, as noisy as DDPM for eta = 1.

    eps is taken from the predicted x0 (clipped, if the denoiser clips), so that the two always agree with x_t.
    """
    for t, t_prev in _steps(timesteps):
        x0 = denoise(x, t)
        eps = diffusion.eps_from_x0(x, x0, t)
        abar, abar_prev = diffusion.abar(t).item(), diffusion.abar(t_prev).item()
        variance = eta**2 * (1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)
        x = math.sqrt(abar_prev) * x0 + math.sqrt(max(1 - abar_prev - variance, 0.0)) * eps
        if variance > 0:
            x = x + math.sqrt(variance) * noise(x)
    return x


def dpmpp(
    denoise: Denoise,
    x: Tensor,
    diffusion: GaussianDiffusion,
    timesteps: Sequence[int],
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """DPM-Solver++(2M), deterministic (Lu et al. 2022, algorithm 2); first order in the first and the last step."""
    previous, h_last = None, 0.0
    for t, t_prev in _steps(timesteps):
        x0 = denoise(x, t)
        if t_prev < 0:  # lambda is infinite at the clean sample: the step lands on x0 itself
            return x0
        abar, abar_prev = diffusion.abar(t).item(), diffusion.abar(t_prev).item()
        h = _log_snr(abar_prev) - _log_snr(abar)
        # Lu et al. 2022, eq. 12: extrapolate x0 linearly in lambda from the last two predictions.
        target = x0 if previous is None else x0 + h / (2 * h_last) * (x0 - previous)
        x = math.sqrt((1 - abar_prev) / (1 - abar)) * x - math.sqrt(abar_prev) * math.expm1(-h) * target
        previous, h_last = x0, h
    return x


def _log_snr(abar: float) -> float:
    """lambda = log(alpha / sigma): half the log signal-to-noise ratio."""
    return 0.5 * math.log(abar / (1 - abar))


def ddim_invert(denoise: Denoise, x0: Tensor, diffusion: GaussianDiffusion, timesteps: Sequence[int]) -> Tensor:
    """The noise that deterministic DDIM over `timesteps` turns (nearly) into x0: its ODE run backwards.

    Dhariwal & Nichol 2021, section F. `timesteps` is the same descending list that the sampler takes. The clean sample
    enters as if it stood at the last time, whose noise level is close to none.
    """
    if len(timesteps) < 2:
        raise UserError(f"inversion needs at least 2 steps, not {len(timesteps)}")
    ascending = list(timesteps)[::-1]
    x = x0 * diffusion.abar(ascending[0]).sqrt().item()
    for t, t_next in itertools.pairwise(ascending):
        predicted = denoise(x, t)
        x = diffusion.add_noise(predicted, diffusion.eps_from_x0(x, predicted, t), t_next)
    return x
