"""Train the upsampler: small images -> large images, by diffusion.

    python -m stages.train upsampler --out checkpoints/run          # after train_decoder.py

The large images are those of the pipeline's data, read `--model.factor` times as large as the decoder's. A small image
is its large one, resized. Both are noised: the large one to be denoised, the small one a little.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages.batches import StepDraw
from stages.inputs import Inputs
from stages.run_options import FrozenCLIPRun, Shapes, noise_level_conflicts
from unclip.diffusion.prediction import add_noise, noised_pair
from unclip.diffusion.process import NoiseLevels, Process
from unclip.errors import UserError
from unclip.fields import bounded
from unclip.grids import captioned_grid
from unclip.images import to_float, to_uint8
from unclip.layers import at_least_float32
from unclip.settings import UpsamplerSettings
from unclip.store.manifest import read_manifest
from unclip.tensor_batch import TensorBatch
from unclip.upsampler import DiffusionUpsampler, DiffusionUpsamplerConfig
from unclip.upsampler.resizing import resize

AUGMENTATION = (0.01, 0.5)
"""Noise over signal on the small images in training: drawn evenly in the logarithm."""


@dataclass(frozen=True)
class UpsamplerRun(FrozenCLIPRun):
    kind: str = bounded("diffusion", affects_weights=False)
    """Kind of the upsampler, of those in unclip/registry.py."""
    crop: float = bounded(0.5, 0.05, 1)
    """Height and width of the random crops that it is trained on, as a share of the large image's."""
    blur: float = bounded(0.0, 0, 8)
    """Deviation of the Gaussian blur on half of the small images, in their pixels, as in the paper; 0 for none."""
    log_sigma: tuple[float, float] | None = bounded((0.0, 1.8), -10, 10)
    """Mean and deviation of the logarithm of the noise over the signal in training; None for uniform times."""
    evaluate_on: int = bounded(100, 1, 10**7)
    """Validation images that the figures are taken on."""
    sampling: UpsamplerSettings = bounded(UpsamplerSettings(), affects_weights=False)
    """How the trained upsampler is sampled; noted in the pipeline's model_index.json."""
    model: DiffusionUpsamplerConfig = bounded(DiffusionUpsamplerConfig(), affects_weights=False)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from noise_level_conflicts(self)

    @property
    def image_scale(self) -> int:
        return self.model.network.factor

    def for_pipeline(self) -> Self:
        """Read the data at `factor` times the decoder's size, unless another size is asked for."""
        decoder = read_manifest(self.out / "decoder").model["network"]["image_size"]
        size = self.image_scale * decoder
        if self.data.size in (None, decoder, size):
            return replace(self, data=replace(self.data, size=size))
        raise UserError(
            f"the decoder draws {decoder}x{decoder}, so with --model.factor {self.image_scale} the upsampler "
            f"is trained on images of {size}x{size}, not {self.data.size}; leave --data.size out"
        )


@dataclass(frozen=True)
class UpsamplerBatch(TensorBatch):
    pixels: Tensor
    """uint8 (B, C, H, W), the large images."""
    embeddings: Tensor
    """Their unit image embeddings (B, D)."""
    corners: Tensor
    """(B, 2), the top and left edge of each crop."""
    levels: NoiseLevels
    noise: Tensor
    """(B, C, crop, crop)."""
    low_levels: NoiseLevels
    """The levels of the noise on the small images."""
    low_noise: Tensor
    """(B, C, h, w)."""
    blurred: Tensor
    """(B,), True for the small images that are blurred."""


class UpsamplerObjective(nn.Module):
    def __init__(self, model: DiffusionUpsampler, blur: float = 0.0):
        super().__init__()
        self.model = model
        self.blur = blur

    def forward(self, batch: UpsamplerBatch) -> Tensor:
        """Squared error on the target, on crops."""
        crop = batch.noise.shape[-1]
        large = to_float(batch.pixels)
        enlarged = cut(self.enlarged(large, batch), batch.corners, crop)
        noised, target = noised_pair(
            self.model.config.diffusion.prediction, cut(large, batch.corners, crop), batch.noise, batch.levels
        )
        predicted = self.model.network(noised, batch.levels.time, enlarged, batch.low_levels.time, batch.embeddings)
        return F.mse_loss(at_least_float32(predicted), target)

    def enlarged(self, large: Tensor, batch: UpsamplerBatch) -> Tensor:
        """The large images (B, C, H, W), made small, noised, and enlarged again."""
        height, width = batch.low_noise.shape[-2:]
        small = resize(large, height, width).clamp(-1, 1)
        if self.blur:
            small = torch.where(batch.blurred[:, None, None, None], gaussian_blur(small, self.blur), small)
        alpha = batch.low_levels.alpha[:, None, None, None]
        sigma = batch.low_levels.sigma[:, None, None, None]
        return resize(add_noise(small, batch.low_noise, alpha, sigma), *large.shape[-2:])


def cut(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut squares (B, C, size, size) out of images (B, C, H, W), at corners (B, 2)."""
    rows = corners[:, :1] + torch.arange(size, device=images.device)  # (B, size)
    columns = corners[:, 1:] + torch.arange(size, device=images.device)
    batch = torch.arange(len(images), device=images.device)
    return images[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def gaussian_blur(images: Tensor, deviation: float) -> Tensor:
    """Blur images (B, C, H, W) with a Gaussian of this deviation in pixels."""
    reach = math.ceil(3 * deviation)
    places = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (places / deviation).square())
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    blurred = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(blurred, kernel.mT, groups=images.shape[1])


class UpsamplerStage:
    """Gives the loop the diffusion loss on crops; on whole validation images that loss, and PSNR beside bicubic's."""

    name = "upsampler"
    best_is = ("loss", "lowest")

    def __init__(self, run: UpsamplerRun, model: DiffusionUpsampler, inputs: Inputs, device: torch.device):
        self.run = run
        self.model = model
        self.inputs = inputs
        self.device = device
        self.objective = UpsamplerObjective(model, run.blur)
        self.process = model.process
        self.size = len(inputs.train)
        self.low_size = model.config.network.low_size

    @staticmethod
    def build_model(run: UpsamplerRun, shapes: Shapes) -> DiffusionUpsampler:
        network = replace(
            run.model.network,
            embed_dim=shapes.embed_dim,
            channels=shapes.channels,
            low_size=max(1, shapes.image_size // run.image_scale),
        )
        return DiffusionUpsampler(replace(run.model, network=network))

    def fit_buffers(self) -> None:
        """Fit the scaling of the embeddings, where the network reads them."""
        if self.model.network.scaler is not None:
            self.model.network.scaler.fit(self.inputs.train.embeddings)

    def batch(self, draw: StepDraw) -> UpsamplerBatch:
        images = draw.examples(self.inputs.train)
        count = len(draw.rows)
        rows = draw.share(draw.rows)
        pixels = images.data.images[rows]
        channels, size, _ = pixels.shape[1:]
        crop = max(1, round(self.run.crop * size))
        return UpsamplerBatch(
            pixels=pixels,
            embeddings=images.embeddings[rows],
            corners=draw.share(torch.randint(size - crop + 1, (count, 2), generator=draw.generator)),
            levels=draw.share(self.process.draw_levels(count, draw.generator, self.run.log_sigma)),
            low_levels=draw.share(draw_augmentation(self.process, count, draw.generator)),
            blurred=draw.share(torch.rand(count, generator=draw.generator) < 0.5),
            noise=draw.normal(channels, crop, crop),
            low_noise=draw.share(torch.randn(count, channels, *[self.low_size] * 2, generator=draw.generator)),
        )

    def figures(self, batch: UpsamplerBatch) -> dict[str, float | Tensor]:
        return {}

    def evaluate(self, model: DiffusionUpsampler) -> dict[str, float]:
        """The loss on whole validation images, the same at every call, and the PSNR of drawn and of bicubic images."""
        validation = self.inputs.validation
        rows = torch.arange(len(validation))[: self.run.evaluate_on]
        generator = torch.Generator().manual_seed(0)
        objective = UpsamplerObjective(model, self.run.blur)
        total = 0.0
        errors = {"psnr": 0.0, "psnr_bicubic": 0.0}
        for part in rows.split(20):
            batch = self._validation_batch(part, generator).to(self.device)
            total += objective(batch).item() * len(part)
            large = to_float(batch.pixels)
            for name, images in zip(errors, self.draw(model, batch.pixels, batch.embeddings), strict=True):
                errors[name] += (images - large).square().mean().item() / 4 * len(part)
        # Peak signal-to-noise ratio: the range of the pixels is 2.
        ratios = {name: -10 * math.log10(max(error / len(rows), 1e-12)) for name, error in errors.items()}
        return {"loss": total / len(rows), **ratios}

    def draw(self, model: DiffusionUpsampler, pixels: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Large images (B, C, H, W) in [-1, 1] from small ones: the model's, and bicubic ones."""
        large = to_float(pixels)
        small = to_float(to_uint8(resize(large, self.low_size, self.low_size)))
        seeds = range(len(pixels))
        drawn = model.process_images(small, embeddings, None, seeds, replace(self.run.sampling, upscale="all"))
        return drawn, resize(small, *large.shape[-2:]).clamp(-1, 1)

    def _validation_batch(self, rows: Tensor, generator: torch.Generator) -> UpsamplerBatch:
        """Whole validation images."""
        images = self.inputs.validation
        pixels = images.data.images[rows]
        low_shape = (len(rows), pixels.shape[1], self.low_size, self.low_size)
        return UpsamplerBatch(
            pixels=pixels,
            embeddings=images.embeddings[rows],
            corners=torch.zeros(len(rows), 2, dtype=torch.long),
            levels=self.process.draw_levels(len(rows), generator, self.run.log_sigma),
            low_levels=draw_augmentation(self.process, len(rows), generator),
            blurred=torch.zeros(len(rows), dtype=torch.bool),
            noise=torch.randn(pixels.shape, generator=generator),
            low_noise=torch.randn(low_shape, generator=generator),
        )

    def preview(self, model: DiffusionUpsampler) -> Image.Image:
        """For the first eight validation images: the small image, bicubic, the model's, and the large image."""
        validation = self.inputs.validation
        count = min(8, len(validation))
        pixels = validation.data.images[:count].to(self.device)
        drawn, bicubic = self.draw(model, pixels, validation.embeddings[:count].to(self.device))
        small = resize(to_float(pixels), self.low_size, self.low_size)
        nearest = F.interpolate(small, size=tuple(pixels.shape[-2:]), mode="nearest")
        columns = [to_uint8(images).cpu() for images in (nearest, bicubic, drawn, to_float(pixels))]
        grid = torch.stack(columns, dim=1).permute(0, 1, 3, 4, 2).numpy()
        caption_ids = validation.data.draw(torch.arange(count), torch.Generator().manual_seed(0))
        captions = [validation.data.captions[i] for i in caption_ids]
        return captioned_grid(list(zip(captions, grid, strict=True)), columns=["small", "bicubic", "drawn", "real"])


def draw_augmentation(process: Process, count: int, generator: torch.Generator) -> NoiseLevels:
    """Noise levels (B,) of small images."""
    low, high = map(math.log, AUGMENTATION)
    ratio = (low + (high - low) * torch.rand(count, generator=generator).double()).exp()
    t = process.times_at(ratio)
    alpha, sigma = process.alpha_sigma(t)
    return NoiseLevels(process.network_time(t).float(), alpha.float(), sigma.float())
