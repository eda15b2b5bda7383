"""The fast decoder: a consistency model with the decoder's network, which draws an image in one to four calls.

Song et al. 2023, arXiv 2303.01469. Its network answers, at any noise level, with a sample and not with the mean of all
clean images. `stages/fast_decoder.py` trains it from the decoder.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unclip.clip.text_features import TextFeatures
from unclip.decoder.diffusion_decoder import DiffusionDecoder
from unclip.devices import inference
from unclip.diffusion.guidance import OnStep, watch
from unclip.diffusion.process import CLEAN, Level, Process
from unclip.diffusion.samplers import consistency
from unclip.diffusion.spacing import SIGMA_RANGE
from unclip.settings import DecoderSettings, FastDecoderSettings

UNGUIDED = DecoderSettings(guidance=1.0)
"""Guidance is part of the weights: see the training."""


class ConsistencyDecoder(DiffusionDecoder):
    """The decoder's network, trained to jump to the clean image."""

    @inference()
    def draw_images(  # type: ignore[override]
        self,
        embeddings: Tensor | None,
        text: TextFeatures,
        seeds: Sequence[int],
        settings: FastDecoderSettings,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw images (N, C, H, W) in [-1, 1]; see `DiffusionDecoder.draw_images`."""
        start, source = self._noise_source(seeds)
        denoise = watch(self.denoiser(embeddings, text, UNGUIDED), on_step)
        levels = consistency_levels(self.process, settings)
        return consistency(denoise, start if noise is None else noise, levels, source)


def consistency_levels(process: Process, settings: FastDecoderSettings) -> list[Level]:
    """The noise levels of the calls, the first of pure noise, and the clean level."""
    second, last = settings.levels
    further = settings.steps - 1
    shares = [0.5] if further == 1 else [i / (further - 1) for i in range(further)]
    ratios = [SIGMA_RANGE[0], *(second ** (1 - share) * last**share for share in shares)]
    times = process.distinct_times_at(torch.tensor(ratios, dtype=torch.float64, device="cpu"))
    return [*map(process.level, times), CLEAN]
