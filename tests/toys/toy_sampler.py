"""A sampler of our own: one prediction, straight from the noise. Its row: SamplerRow(first_guess, reads=("eta",))."""

from collections.abc import Sequence

from torch import Tensor

from unclip.diffusion import Level
from unclip.diffusion.samplers import Denoise, Noise


def first_guess(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 0.0) -> Tensor:
    return denoise(x, levels[0]).x0 + eta * noise(x)
