"""Noise of which every row depends on its own seed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PRIOR_STREAM = 1
DECODER_STREAM = 2
UPSAMPLER_STREAM = 3
"""Streams of numbers: equal seeds give unrelated noise to the parts of a pipeline."""


class RowNoise:
    """Standard-normal noise in which row i depends only on seeds[i], and on how often it was asked.

    Args:
        seeds: one non-negative integer per row.
        stream: names the use, so that equal seeds give unrelated noise to different uses.

    The numbers are drawn on the CPU, so that every device starts from the same noise.
    """

    def __init__(self, seeds: Sequence[int], *stream: int):
        states = [int(np.random.SeedSequence([int(s), *stream]).generate_state(1, np.uint64)[0]) for s in seeds]
        self.generators = [torch.Generator().manual_seed(state >> 1) for state in states]

    def __call__(self, x: Tensor) -> Tensor:
        rows = [torch.randn(x.shape[1:], generator=g, dtype=torch.float32, device="cpu") for g in self.generators]
        return torch.stack(rows).to(x.device, x.dtype)
