"""Closures around a model(x, level), and around a denoiser: guidance, its interval, and watching."""

from collections.abc import Callable

import torch
from torch import Tensor

from unclip.diffusion.process import Level
from unclip.diffusion.samplers import Denoise, Denoised

OnStep = Callable[[Level, Tensor, Tensor], None]


def guided(model, scale: float):
    """Classifier-free guidance (Ho & Salimans 2022) as a closure around model(x, level).

    The model must be conditioned on 2B rows: B conditions, then the B nulls that belong to them. Both halves go through
    it in one batch. scale = 1 is the conditional model, 0 the unconditional one.
    """

    def guided_model(x: Tensor, level: Level) -> Tensor:
        conditional, null = model(torch.cat([x, x]), level).chunk(2)
        return torch.lerp(null, conditional, scale)

    return guided_model


def on_interval(inside, outside, low: float, high: float):
    """model(x, level) that is `inside` at times low <= t <= high, and `outside` at all others.

    Guidance helps at middle noise levels only: at high ones it costs variety, and at low ones nothing is left to decide
    (Kynkaanniemi et al. 2024, arXiv 2404.07724). The other steps are cheaper without it.
    """
    return lambda x, level: inside(x, level) if low <= level.t <= high else outside(x, level)


def watch(denoise: Denoise, on_step: OnStep | None) -> Denoise:
    """The same denoiser, which calls on_step(level, x_t, predicted x0) after every step; or itself for None."""
    if on_step is None:
        return denoise

    def watched(x: Tensor, level: Level) -> Denoised:
        denoised = denoise(x, level)
        on_step(level, x, denoised.x0)
        return denoised

    return watched
