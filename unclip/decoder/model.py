"""The decoder: turns a CLIP image embedding, and a caption, into pixels by diffusion.

Ramesh et al. 2022, section 2.1, on Nichol et al. 2021 (GLIDE) and Dhariwal & Nichol 2021.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from unclip.clip.text_features import TextFeatures
from unclip.decoder.condition import Condition, ImageCondition, TextCondition
from unclip.decoder.unet import UNet, UNetConfig
from unclip.diffusion.gaussian import GaussianDiffusion, Prediction, Schedule
from unclip.diffusion.samplers import (
    DECODER_STREAM,
    Denoise,
    OnStep,
    RowNoise,
    ddim_invert,
    ddpm_inpaint,
    guided,
    karras_timesteps,
    on_interval,
    spaced_timesteps,
    watch,
)
from unclip.fields import bounded, check, from_data
from unclip.layers import timestep_embedding
from unclip.registry import choose_sampler
from unclip.settings import DecoderSettings


@dataclass(frozen=True)
class DecoderConfig(UNetConfig):
    embed_dim: int = from_data(0, 0, 16_384)
    """Dimension of CLIP's embeddings."""
    text_width: int = from_data(0, 0, 16_384)
    """Width of CLIP's token encodings."""
    image_size: int = from_data(28, 1, 1024)
    """Height and width of the images that are sampled, in pixels."""
    channels: int = from_data(1, 1, 4)
    """1 for grey, 3 for colour."""
    image_tokens: int = bounded(4, 1, 256)
    """Tokens that the image embedding is projected to for the attention."""
    text: bool = True
    """Whether the decoder reads the caption too, through a text transformer on CLIP's token encodings."""
    text_layers: int = bounded(1, 0, 64)
    """Blocks of that transformer; 0 leaves a projection."""
    timesteps: int = bounded(1000, 2, 10_000)
    """Diffusion steps of the training process."""
    schedule: Schedule = "cosine"
    """Noise schedule."""
    prediction: Prediction = "v"
    """What the network predicts."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from super().conflicts()
        if self.text and self.text_layers and self.condition_width % self.text_heads:
            yield "condition_width", "be a multiple of 32, or below 64"

    @property
    def text_heads(self) -> int:
        """Attention heads of the text transformer, of 32 numbers each; one if it is narrower than two of them."""
        return max(1, self.condition_width // 32)


class Decoder(nn.Module):
    """A condition, read once per sample, and a UNet, called at every step."""

    config_class = DecoderConfig

    def __init__(self, config: DecoderConfig):
        super().__init__()
        check(config)
        self.config = config
        vector, tokens = config.vector_width, config.condition_width
        self.image_condition = ImageCondition(config.embed_dim, vector, config.image_tokens, tokens)
        text = TextCondition(config.text_width, tokens, config.text_layers, config.text_heads) if config.text else None
        self.text_condition = text
        self.time = nn.Sequential(nn.Linear(config.width, vector), nn.SiLU(), nn.Linear(vector, vector))
        self.unet = UNet(config, config.channels, config.channels)

    def diffusion(self) -> GaussianDiffusion:
        return GaussianDiffusion(self.config.timesteps, self.config.schedule, self.config.prediction)

    def condition(self, embeddings: Tensor, captions: TextFeatures, drop: Tensor) -> Condition:
        """Read unit image embeddings (B, D) and B captions.

        Where drop (B,) is True the learned null takes the place of the embedding; that of an empty caption does so by
        itself.
        """
        condition = self.image_condition(embeddings, drop)
        if self.text_condition is None:
            return condition
        tokens, mask = self.text_condition(captions)
        tokens = torch.cat([condition.tokens, tokens], dim=1)  # (B, 4 + L, W)
        return Condition(condition.vector, tokens, torch.cat([condition.mask, mask], dim=1))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noised images (B, C, H, W) at times t (B,) -> prediction (B, C, H, W), for any H and W."""
        time = self.time(timestep_embedding(t, self.config.width).to(x.dtype))  # (B, E)
        return self.unet(x, time + condition.vector, condition.tokens, condition.mask)

    def denoiser(self, embeddings: Tensor | None, captions: TextFeatures, settings: DecoderSettings) -> Denoise:
        """denoise(x, t) -> x0, guided as the settings say: what samplers and inversion are given.

        Args:
            embeddings: unit image embeddings (N, D), or None to drop them.
            captions: N captions, of which empty ones are dropped.
        """
        diffusion, n = self.diffusion(), len(captions)
        drop = torch.full_like(captions.empty, embeddings is None)
        if embeddings is None:
            embeddings = captions.embedding.new_zeros(n, self.config.embed_dim)
        if settings.guidance == 1:
            model = partial(self, condition=self.condition(embeddings, captions, drop))
        else:  # N conditions, then the N nulls that belong to them
            pairs = (embeddings.repeat(2, 1), TextFeatures.cat([captions, captions.null()]))
            both = self.condition(*pairs, torch.cat([drop, torch.ones_like(drop)]))
            inside = guided(partial(self, condition=both), settings.guidance)
            ends = (end * (diffusion.timesteps - 1) for end in settings.guidance_interval)
            model = on_interval(inside, partial(self, condition=both[:n]), *ends)
        return diffusion.denoiser(model, clip_x0=1.0)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """The noise (N, C, H, W) that samples of N seeds start from."""
        return self._noise_source(seeds)[0]

    def _noise_source(self, seeds: Sequence[int]) -> tuple[Tensor, RowNoise]:
        """The noise to start from, and the source of what is added on the way."""
        source, config = RowNoise(seeds, DECODER_STREAM), self.config
        shape = (len(seeds), config.channels, config.image_size, config.image_size)
        return source(next(self.parameters()).new_empty(shape)), source

    @torch.inference_mode()
    def draw(
        self,
        embeddings: Tensor | None,
        captions: TextFeatures,
        seeds: Sequence[int],
        settings: DecoderSettings,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Images (N, C, H, W) in [-1, 1].

        Args:
            embeddings, captions: as for `denoiser`.
            seeds: N seeds, of the noise to start from and of what a stochastic sampler adds.
            noise: (N, C, H, W) to start from instead, as `invert` gives it.
            on_step: called with (t, x_t, predicted x0) at each step.
        """
        diffusion = self.diffusion()
        timesteps = times_to_visit(diffusion, settings)
        own, source = self._noise_source(seeds)
        denoise = watch(self.denoiser(embeddings, captions, settings), on_step)
        return choose_sampler(settings)(denoise, own if noise is None else noise, diffusion, timesteps, source)

    @torch.inference_mode()
    def invert(
        self, images: Tensor, embeddings: Tensor | None, captions: TextFeatures, settings: DecoderSettings
    ) -> Tensor:
        """The noise (N, C, H, W) that deterministic DDIM in as many steps turns into images (N, C, H, W) in [-1, 1]."""
        diffusion = self.diffusion()
        timesteps = times_to_visit(diffusion, settings)
        grain = RowNoise([0] * len(images), DECODER_STREAM, 1)(images)  # of no seed's own stream, equal for all images
        return ddim_invert(self.denoiser(embeddings, captions, settings), images, diffusion, timesteps, grain)

    @torch.inference_mode()
    def inpaint(
        self,
        images: Tensor,
        mask: Tensor,
        embeddings: Tensor | None,
        captions: TextFeatures,
        seeds: Sequence[int],
        settings: DecoderSettings,
    ) -> Tensor:
        """Images (N, C, H, W) in [-1, 1], painted where mask (N, 1, H, W) is True, by DDPM; see `ddpm_inpaint`.

        The other arguments are those of `draw`.
        """
        diffusion = self.diffusion()
        timesteps = times_to_visit(diffusion, settings)
        start, source = self._noise_source(seeds)
        denoise = self.denoiser(embeddings, captions, settings)
        return ddpm_inpaint(denoise, start, diffusion, timesteps, source, images, mask)


def times_to_visit(diffusion: GaussianDiffusion, settings: DecoderSettings) -> list[int]:
    if settings.spacing == "even":
        return spaced_timesteps(diffusion.timesteps, settings.steps)
    return karras_timesteps(diffusion, settings.steps)
