"""The diffusion upsampler as a part of a pipeline: the decoder's images -> larger images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unclip.clip.text_features import TextFeatures
from unclip.devices import inference
from unclip.diffusion.noise import UPSAMPLER_STREAM, RowNoise
from unclip.diffusion.prediction import add_noise, at_level, make_denoiser
from unclip.diffusion.process import Process, ProcessConfig
from unclip.diffusion.samplers import dpmpp
from unclip.diffusion.spacing import karras_levels
from unclip.fields import check, flattened
from unclip.settings import UpsamplerSettings
from unclip.upsampler.model import UpsamplerConfig, UpsamplerNetwork
from unclip.upsampler.resizing import resize
from unclip.upsampler.tiles import in_tiles


@dataclass(frozen=True)
class DiffusionUpsamplerConfig:
    network: UpsamplerConfig = flattened(UpsamplerConfig())
    diffusion: ProcessConfig = flattened(ProcessConfig(prediction="x0"))


class DiffusionUpsampler(nn.Module):
    """A network that denoises large images beside the small ones, and how to sample from it."""

    config_class = DiffusionUpsamplerConfig

    def __init__(self, config: DiffusionUpsamplerConfig):
        super().__init__()
        check(config)
        self.config = config
        self.network = UpsamplerNetwork(config.network)
        self.process: Process = config.diffusion.build()

    @inference()
    def process_images(
        self,
        images: Tensor,
        embeddings: Tensor | None,
        text: TextFeatures,
        seeds: Sequence[int],
        settings: UpsamplerSettings,
    ) -> Tensor:
        """Enlarge images (N, C, H, W) in [-1, 1] by the factor.

        The small images get a little noise, of which the network is told (Ho et al. 2021, arXiv 2106.15282, section
        4.2): it hides the decoder's errors, which the network has never seen in training.
        """
        if settings.upscale == "none":
            return images
        factor = self.config.network.factor
        noise = RowNoise(seeds, UPSAMPLER_STREAM)
        ratio = torch.tensor(settings.upscale_noise, dtype=torch.float64, device="cpu")
        level = self.process.level(self.process.times_at(ratio).item())
        noised = add_noise(images, noise(images), level.alpha, level.sigma)
        enlarged = resize(noised, images.shape[-2] * factor, images.shape[-1] * factor)
        network_time = self.process.network_time(level.t)
        augmentation = torch.full((len(images),), network_time, dtype=torch.float32, device=images.device)
        unet = self.config.network.unet

        def network(x: Tensor, time: Tensor) -> Tensor:
            def on_tile(x: Tensor, enlarged: Tensor) -> Tensor:
                return self.network(x, time, enlarged, augmentation, embeddings)

            return in_tiles(on_tile, settings.upscale_tile, unet.reach, unet.stride)(x, enlarged)

        denoise = make_denoiser(at_level(network, self.process), self.config.diffusion.prediction, clip_x0=1.0)
        return dpmpp(denoise, noise(enlarged), karras_levels(self.process, settings.upscale_steps))
