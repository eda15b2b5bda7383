"""The diffusion decoder as a part of a pipeline: image embedding and caption -> pixels; with inversion, inpainting."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unclip.clip.text_features import TextFeatures
from unclip.decoder.condition import Condition
from unclip.decoder.model import DecoderConfig, DecoderNetwork
from unclip.devices import inference, precision_of
from unclip.diffusion.guidance import OnStep, guided, on_interval, watch
from unclip.diffusion.inpainting import ddpm_inpaint
from unclip.diffusion.inversion import ddim_invert
from unclip.diffusion.noise import DECODER_STREAM, RowNoise
from unclip.diffusion.prediction import at_level, make_denoiser
from unclip.diffusion.process import Level, Process, ProcessConfig
from unclip.diffusion.samplers import Denoise
from unclip.diffusion.spacing import SPACINGS
from unclip.fields import check, flattened
from unclip.registry import choose_sampler
from unclip.settings import DecoderSettings


@dataclass(frozen=True)
class DiffusionDecoderConfig:
    network: DecoderConfig = flattened(DecoderConfig())
    diffusion: ProcessConfig = flattened(ProcessConfig(prediction="v"))


class DiffusionDecoder(nn.Module):
    """A network that denoises images, and the ways to sample from it."""

    config_class = DiffusionDecoderConfig

    def __init__(self, config: DiffusionDecoderConfig):
        super().__init__()
        check(config)
        self.config = config
        self.network = DecoderNetwork(config.network)
        self.process: Process = config.diffusion.build()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that are drawn."""
        network = self.config.network
        return network.channels, network.image_size, network.image_size

    def condition(self, embeddings: Tensor, drop: Tensor, text: TextFeatures) -> Condition:
        """Read unit image embeddings (B, D) and B captions; see `DecoderNetwork.condition`."""
        return self.network.condition(embeddings, drop, text.tokens, text.mask, text.empty)

    def denoiser(
        self, embeddings: Tensor | None, text: TextFeatures, settings: DecoderSettings, drop: Tensor | None = None
    ) -> Denoise:
        """denoise(x, level), guided as the settings say, which samplers and inversion are given.

        Args:
            embeddings: unit image embeddings (N, D), or None to drop them.
            text: N captions; empty ones are dropped.
            drop: (N,), True for embeddings to drop; without it all or none.
        """
        count = len(text)
        process = self.process
        drop = torch.full_like(text.empty, embeddings is None) if drop is None else drop
        if embeddings is None:
            embeddings = text.embedding.new_zeros(count, self.config.network.embed_dim)

        def conditioned(condition: Condition):
            def network(x: Tensor, time: Tensor) -> Tensor:
                with precision_of(self):
                    return self.network(x, time, condition)

            return at_level(network, process)

        if settings.guidance == 1:
            with precision_of(self):
                model = conditioned(self.condition(embeddings, drop, text))
        else:  # N conditions, then the N nulls, or the negative captions, that belong to them
            with_nulls = TextFeatures.cat([text, text.null()])
            with precision_of(self):
                both = self.condition(embeddings.repeat(2, 1), torch.cat([drop, torch.ones_like(drop)]), with_nulls)
            inside = guided(conditioned(both), settings.guidance)
            low, high = map(process.time_at_share, settings.guidance_interval)
            model = on_interval(inside, conditioned(both.first(count)), low, high)
        return make_denoiser(model, self.config.diffusion.prediction, clip_x0=1.0)

    def levels(self, settings: DecoderSettings) -> list[Level]:
        """The noise levels that the settings ask for."""
        return SPACINGS[settings.spacing](self.process, settings.steps)

    def draw_noise(self, seeds: Sequence[int]) -> Tensor:
        """The noise (N, C, H, W) that samples of N seeds start from."""
        return self._noise_source(seeds)[0]

    def _noise_source(self, seeds: Sequence[int]) -> tuple[Tensor, RowNoise]:
        """The noise to start from, and the source of the noise that is added on the way."""
        source = RowNoise(seeds, DECODER_STREAM)
        empty = next(self.parameters()).new_empty((len(seeds), *self.image_shape))
        return source(empty), source

    @inference()
    def draw_images(
        self,
        embeddings: Tensor | None,
        text: TextFeatures,
        seeds: Sequence[int],
        settings: DecoderSettings,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw images (N, C, H, W) in [-1, 1].

        Args:
            embeddings, text: as for `denoiser`.
            seeds: N seeds, of the noise to start from and of the noise that a stochastic sampler adds.
            noise: (N, C, H, W) to start from instead, such as `invert_images` returns.
            on_step: called with (level, x_t, predicted x0) at each step.
        """
        levels = self.levels(settings)
        start, source = self._noise_source(seeds)
        denoise = watch(self.denoiser(embeddings, text, settings), on_step)
        return choose_sampler(settings)(denoise, start if noise is None else noise, levels, source)

    @inference()
    def invert_images(
        self, images: Tensor, embeddings: Tensor | None, text: TextFeatures, settings: DecoderSettings
    ) -> Tensor:
        """The noise (N, C, H, W) that deterministic DDIM in as many steps turns into images (N, C, H, W) in [-1, 1]."""
        grain = RowNoise([0] * len(images), DECODER_STREAM, 1)(images)  # equal for all images, and of no seed's stream
        return ddim_invert(self.denoiser(embeddings, text, settings), images, self.levels(settings), grain)

    @inference()
    def inpaint_images(
        self,
        images: Tensor,
        mask: Tensor,
        embeddings: Tensor | None,
        text: TextFeatures,
        seeds: Sequence[int],
        settings: DecoderSettings,
    ) -> Tensor:
        """Paint images (N, C, H, W) in [-1, 1] anew where mask (N, 1, H, W) is True, by DDPM; see `ddpm_inpaint`.

        The other arguments are those of `draw_images`.
        """
        levels = self.levels(settings)
        start, source = self._noise_source(seeds)
        denoise = self.denoiser(embeddings, text, settings)
        return ddpm_inpaint(denoise, start, levels, source, images, mask)
