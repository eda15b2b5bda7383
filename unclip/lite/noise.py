"""Normal noise, row by row from seeds: the numbers of PyTorch's generator on a CPU, computed by NumPy.

PyTorch seeds a Mersenne Twister with the lower 32 bits of the seed. Each uniform number is 24 bits of one output.
Sixteen of them become sixteen normal ones, by the transformation of Box and Muller: the first eight give radii, the
others angles.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

PRIOR_STREAM = 1
DECODER_STREAM = 2
UPSAMPLER_STREAM = 3
"""Streams of numbers, as in `unclip.diffusion.noise`."""
GROUP = 16


class RowNoise:
    """Standard-normal noise in which row i depends only on seeds[i], and on how often it was asked.

    The same numbers as those of `unclip.diffusion.noise.RowNoise`, to the rounding of logarithms and cosines.
    """

    def __init__(self, seeds: Sequence[int], *stream: int):
        self.generators = [seeded_generator([int(seed), *stream]) for seed in seeds]

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        """Noise (N, *shape), float32. Raises ValueError for fewer than 16 numbers, which PyTorch draws otherwise."""
        count = int(np.prod(shape))
        return np.stack([draw_normal(generator, count).reshape(shape) for generator in self.generators])


def seeded_generator(words: list[int]) -> np.random.MT19937:
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1
    seeded: Any = np.random.RandomState(seed & 0xFFFFFFFF)
    generator = np.random.MT19937()
    generator.state = seeded.get_state(legacy=False)
    return generator


def draw_normal(generator: np.random.MT19937, count: int) -> np.ndarray:
    """`count` standard-normal numbers (count,)."""
    if count < GROUP:
        raise ValueError(f"at least {GROUP} numbers are drawn at once, not {count}")
    whole = count // GROUP * GROUP
    numbers = draw_uniform(generator, count)
    normal = np.empty(count, np.float32)
    normal[:whole] = box_muller(numbers[:whole])
    if whole < count:  # the last sixteen are drawn anew
        normal[-GROUP:] = box_muller(draw_uniform(generator, GROUP))
    return normal


def draw_uniform(generator: np.random.MT19937, count: int) -> np.ndarray:
    """`count` numbers in [0, 1), multiples of 2^-24."""
    return (generator.random_raw(count) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def box_muller(uniform: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), whole groups of sixteen -> as many normal ones."""
    first, second = uniform.reshape(-1, 2, GROUP // 2).swapaxes(0, 1)  # each (groups, 8)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - first))
    angle = np.float32(2 * np.pi) * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
