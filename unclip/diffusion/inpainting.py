"""Painting a part of a sample anew, with a model that was trained on whole ones."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from unclip.diffusion.process import Level
from unclip.diffusion.samplers import Denoise, Noise, posterior, step_down


def ddpm_inpaint(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, known: Tensor, mask: Tensor, rounds: int = 4
) -> Tensor:
    """DDPM where mask is True; elsewhere the sample stays `known`, noised to each level (Lugmayr et al. 2022, RePaint).

    Every step is taken `rounds` times, noised again between (their algorithm 1), so that the painted part learns from
    the known part. The known part of each predicted clean sample is replaced, too.

    Args:
        known: a clean sample like x.
        mask: bool, broadcasts with x; True where to paint.
    """
    x = torch.where(mask, x, levels[0].alpha * known + levels[0].sigma * noise(x))
    for level, lower in pairwise(levels):
        for remaining in reversed(range(rounds)):
            x0 = torch.where(mask, denoise(x, level).x0, known)
            mean, variance = posterior(x0, x, level, lower)
            if lower.sigma == 0:
                x = x0
                break
            painted = mean + variance.sqrt() * noise(x)
            x = torch.where(mask, painted, lower.alpha * known + lower.sigma * noise(x))
            if remaining:
                alpha, step_variance = step_down(level, lower)
                x = alpha * x + math.sqrt(step_variance) * noise(x)
    return x
