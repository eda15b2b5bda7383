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

from unclip.diffusion.gaussian import GaussianDiffusion
from unclip.errors import UserError

Denoise = Callable[[Tensor, int], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]


def spaced_timesteps(timesteps: int, steps: int, name: str = "steps") -> list[int]:
    """`steps` descending times from T-1, evenly spaced ("trailing": Lin et al. 2023, table 2). steps = T visits all."""
    if not 1 <= steps <= timesteps:
        raise UserError(f"{name} must be between 1 and {timesteps}, not {steps}")
    return [round(timesteps - i * timesteps / steps) - 1 for i in range(steps)]


def karras_timesteps(diffusion: GaussianDiffusion, steps: int, rho: float = 7.0) -> list[int]:
    """`steps` descending times, dense where there is little noise: sigma^(1/rho) is evenly spaced (Karras et al. 2022,
    eq. 5), from 80 down to 0.02, which are within a grey level of pure noise and of the clean image.

    Where neighbours would fall on one time they are moved apart, so that steps = T visits all.
    """
    if not 1 <= steps <= diffusion.timesteps:
        raise UserError(f"steps must be between 1 and {diffusion.timesteps}, not {steps}")
    ends = torch.tensor(SIGMA_RANGE, dtype=torch.float64) ** (1 / rho)
    times = diffusion.nearest_times(torch.lerp(*ends, torch.linspace(0, 1, steps, dtype=torch.float64)) ** rho).tolist()
    for i in range(1, steps):
        times[i] = min(times[i], times[i - 1] - 1)
    return [max(time, steps - 1 - i) for i, time in enumerate(times)]


SIGMA_RANGE = (80.0, 0.02)
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


def ddim_invert(
    denoise: Denoise,
    x0: Tensor,
    diffusion: GaussianDiffusion,
    timesteps: Sequence[int],
    grain: Tensor | None = None,
    rounds: int = 2,
) -> Tensor:
    """The noise that deterministic DDIM over `timesteps` turns into x0: the sampler's own steps, solved backwards.

    A step of DDIM from t_next to t asks the denoiser at x_{t_next}, which the way back does not know yet. The plain
    inversion asks at x_t instead (Dhariwal & Nichol 2021, section F); here x_{t_next} is found by fixed-point iteration
    (Pan et al. 2023, arXiv 2309.04907, section 3.2), so that the sampler leads back to x0, clipped denoisers included.

    Args:
        timesteps: the same descending list that the sampler takes, at least 2.
        grain: standard-normal noise like x0, put on it at the last time's level, near none. The denoiser removes any
            noise there, so any would do; without it flat areas get noise of far too little variance.
        rounds: calls of the denoiser per step; each brings the step closer to the exact one.
    """
    if len(timesteps) < 2:
        raise UserError(f"inversion needs at least 2 steps, not {len(timesteps)}")
    ascending = list(timesteps)[::-1]
    x = diffusion.add_noise(x0, torch.zeros_like(x0) if grain is None else grain, ascending[0])
    for _ in range(2 * rounds):  # the sampler's last step lands on the denoiser's prediction
        x = x + diffusion.abar(ascending[0]).sqrt().item() * (x0 - denoise(x, ascending[0]))
    predicted = x0
    for t, t_next in itertools.pairwise(ascending):
        reached = x
        x = _moved(reached, predicted, diffusion, t, t_next)
        for _ in range(rounds):
            predicted = denoise(x, t_next)
            x = _moved(reached, predicted, diffusion, t, t_next)
    return x


def _moved(x: Tensor, x0: Tensor, diffusion: GaussianDiffusion, t: int, t_next: int) -> Tensor:
    """x at time t carried to t_next, with the same clean sample and the same noise in it."""
    return diffusion.add_noise(x0, diffusion.eps_from_x0(x, x0, t), t_next)


def ddpm_inpaint(
    denoise: Denoise,
    x: Tensor,
    diffusion: GaussianDiffusion,
    timesteps: Sequence[int],
    noise: Callable[[Tensor], Tensor],
    known: Tensor,
    mask: Tensor,
    rounds: int = 4,
) -> Tensor:
    """DDPM where mask is True; elsewhere the sample stays `known`, noised to each level (Lugmayr et al. 2022, RePaint).

    Every step is taken `rounds` times, noised again between (their algorithm 1): only so does what is painted learn
    from what is known. In the predicted clean sample, too, the known part is what it is.

    Args:
        known: a clean sample like x.
        mask: bool, broadcasts with x; True where to paint.
    """
    x = torch.where(mask, x, diffusion.add_noise(known, noise(x), timesteps[0]))
    for t, t_prev in _steps(timesteps):
        for remaining in reversed(range(rounds)):
            x0 = torch.where(mask, denoise(x, t), known)
            mean, variance = diffusion.posterior(x0, x, t, t_prev)
            if t_prev < 0:
                x = x0
                break
            drawn = mean + variance.sqrt() * noise(x)
            x = torch.where(mask, drawn, diffusion.add_noise(known, noise(x), t_prev))
            if remaining:
                alpha = (diffusion.abar(t) / diffusion.abar(t_prev)).item()
                x = math.sqrt(alpha) * x + math.sqrt(1 - alpha) * noise(x)
    return x
