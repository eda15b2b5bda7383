"""DDIM run backwards: from a sample to the noise that it comes from."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from unclip.diffusion.process import Level
from unclip.diffusion.samplers import Denoise
from unclip.errors import UserError


def ddim_invert(
    denoise: Denoise, x0: Tensor, levels: Sequence[Level], grain: Tensor | None = None, rounds: int = 2
) -> Tensor:
    """The noise that deterministic DDIM over `levels` turns into x0: the sampler's own steps, solved backwards.

    A step of DDIM from a noisier x to x_lower asks the denoiser at x, which the way back does not know yet. The plain
    inversion asks at x_lower instead (Dhariwal & Nichol 2021, section F). Here x is found by fixed-point iteration (Pan
    et al. 2023, arXiv 2309.04907, section 3.2), so that the sampler leads back to x0, clipped denoisers included.

    Args:
        levels: the same list that the sampler takes, with at least 2 steps.
        grain: standard-normal noise like x0, added at the lowest noisy level, where there is nearly none. The denoiser
            removes any noise there, so any would do; without it flat areas get noise of far too little variance.
        rounds: calls of the denoiser per step; each brings the step closer to the exact one.
    """
    ascending = list(levels)[-2::-1]  # without the clean level
    if len(ascending) < 2:
        raise UserError(f"inversion needs at least 2 steps, not {len(ascending)}")
    lowest = ascending[0]
    x = lowest.alpha * x0 + lowest.sigma * (torch.zeros_like(x0) if grain is None else grain)
    for _ in range(2 * rounds):  # the sampler's last step lands on the denoiser's prediction
        x = x + lowest.alpha * (x0 - denoise(x, lowest).x0)
    predicted = x0
    for lower, level in pairwise(ascending):
        reached = x
        x = _move(reached, predicted, lower, level)
        for _ in range(rounds):
            predicted = denoise(x, level).x0
            x = _move(reached, predicted, lower, level)
    return x


def _move(x: Tensor, x0: Tensor, start: Level, end: Level) -> Tensor:
    """x carried from one level to another, with the same clean sample and the same noise in it."""
    eps = (x - start.alpha * x0) / start.sigma
    return end.alpha * x0 + end.sigma * eps
