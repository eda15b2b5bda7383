"""Train the decoder: the frozen CLIP's image embeddings, and captions -> pixels."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages.batches import StepDraw
from stages.embed import EmbeddedImages
from stages.inputs import Inputs
from stages.run_options import FrozenCLIPRun, Shapes, guidance_conflicts, noise_level_conflicts
from unclip.clip import TextFeatures
from unclip.decoder import DiffusionDecoder, DiffusionDecoderConfig
from unclip.diffusion.prediction import min_snr_weight, noised_pair
from unclip.diffusion.process import NoiseLevels
from unclip.fields import bounded
from unclip.grids import captioned_grid
from unclip.images import to_float, to_uint8
from unclip.layers import at_least_float32
from unclip.settings import DecoderSettings
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class DecoderRun(FrozenCLIPRun):
    kind: str = bounded("diffusion", affects_weights=False)
    """Kind of the decoder, of those in unclip/registry.py."""
    drop_image: float = bounded(0.1, 0, 0.99)
    """Share of the image embeddings that are replaced by the learned null, for guidance."""
    drop_text: float = bounded(0.5, 0, 0.99)
    """Share of the captions that are replaced by the learned null."""
    embedding_noise: float = bounded(0.0, 0, 2)
    """Deviation of the noise on the scaled image embeddings, so that the decoder forgives the prior's errors."""
    log_sigma: tuple[float, float] | None = bounded((-0.8, 1.4), -10, 10)
    """Mean and deviation of the logarithm of the noise over the signal in training; None for uniform times."""
    min_snr: float | None = bounded(None, 1e-6, 1e6)
    """Weigh noise levels as min-SNR does with this gamma (Hang et al. 2023, arXiv 2303.09556); without it all alike. It
    gives the lowest levels little weight, which leaves grain where images are flat."""
    evaluate_on: int = bounded(1000, 1, 10**7)
    """Validation images that the loss is taken on."""
    sampling: DecoderSettings = bounded(DecoderSettings(), affects_weights=False)
    """How the trained decoder is sampled; noted in the pipeline's model_index.json."""
    model: DiffusionDecoderConfig = bounded(DiffusionDecoderConfig(), affects_weights=False)
    drops: ClassVar[tuple[str, ...]] = ("drop_image", "drop_text")
    """Options by which both nulls are learned."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from noise_level_conflicts(self)
        yield from guidance_conflicts(self, *self.drops)


@dataclass(frozen=True)
class DecoderBatch(TensorBatch):
    pixels: Tensor
    """uint8 (B, C, H, W)."""
    embeddings: Tensor
    """Their unit image embeddings (B, D)."""
    drop: Tensor
    """(B,), True where the embedding is dropped."""
    text: TextFeatures
    levels: NoiseLevels
    noise: Tensor
    """(B, C, H, W)."""


class DecoderObjective(nn.Module):
    def __init__(self, model: DiffusionDecoder, min_snr: float | None = None):
        super().__init__()
        self.model = model
        self.min_snr = min_snr

    def forward(self, batch: DecoderBatch) -> Tensor:
        """Squared error on the target, averaged over the batch: noise levels alike, or as `min_snr` weighs them."""
        noised, target = self._pair(batch)
        condition = self.model.condition(batch.embeddings, batch.drop, batch.text)
        return self._loss(at_least_float32(self.model.network(noised, batch.levels.time, condition)) - target, batch)

    def chance(self, batch: DecoderBatch) -> Tensor:
        """The loss of a decoder that answers nothing but zeros."""
        return self._loss(self._pair(batch)[1], batch)

    def _pair(self, batch: DecoderBatch) -> tuple[Tensor, Tensor]:
        """Noised images and the target for them."""
        prediction = self.model.config.diffusion.prediction
        return noised_pair(prediction, to_float(batch.pixels), batch.noise, batch.levels)

    def _loss(self, error: Tensor, batch: DecoderBatch) -> Tensor:
        squared = error.square().mean(dim=(1, 2, 3))  # (B,)
        if self.min_snr is not None:
            levels = batch.levels
            prediction = self.model.config.diffusion.prediction
            squared = squared * min_snr_weight(prediction, levels.alpha, levels.sigma, self.min_snr)
        return squared.mean()


class DecoderBatches:
    """Images with their conditions, noise and noise levels, for training and for validation.

    Args:
        run: says how much of the conditions is dropped or noised, and which noise levels are drawn: the fields
            drop_image, drop_text, embedding_noise and log_sigma.
    """

    def __init__(self, run: Any, model: DiffusionDecoder, inputs: Inputs):
        self.run = run
        self.model = model
        self.inputs = inputs

    def draw(self, draw: StepDraw) -> DecoderBatch:
        """This rank's training images of a step."""
        images = draw.examples(self.inputs.train)
        rows = draw.share(draw.rows)
        caption_ids = draw.share(images.data.draw(draw.rows, draw.generator))
        levels = draw.share(self.model.process.draw_levels(len(draw.rows), draw.generator, self.run.log_sigma))
        drop_image, drop_text = torch.rand(2, len(draw.rows), generator=draw.generator)
        embedding_noise = draw.share(self._embedding_noise(draw))
        pixels = images.data.images[rows]
        return DecoderBatch(
            pixels=pixels,
            embeddings=F.normalize(images.embeddings[rows] + embedding_noise, dim=-1),
            drop=draw.share(drop_image < self.run.drop_image),
            text=images.text_features(caption_ids).drop(draw.share(drop_text < self.run.drop_text)),
            levels=levels,
            noise=draw.normal(*pixels.shape[1:]),
        )

    @cached_property
    def embedding_std(self) -> Tensor:
        """Deviations of the embeddings (D,), on the CPU."""
        return self.model.network.image_condition.scaler.std.cpu()

    def _embedding_noise(self, draw: StepDraw) -> Tensor:
        """Noise on the embeddings (B, D); zeros (B, 1) where none is asked for."""
        if self.run.embedding_noise == 0:
            return torch.zeros(len(draw.rows), 1)
        normal = torch.randn(len(draw.rows), len(self.embedding_std), generator=draw.generator)
        return self.run.embedding_noise * self.embedding_std * normal

    def draw_validation(self, rows: Tensor, generator: torch.Generator) -> DecoderBatch:
        """Validation images with their embeddings and a caption each, of which nothing is dropped."""
        images = self.inputs.validation
        pixels = images.data.images[rows]
        return DecoderBatch(
            pixels=pixels,
            embeddings=images.embeddings[rows],
            drop=torch.zeros(len(rows), dtype=torch.bool),
            text=images.text_features(images.data.draw(rows, generator)),
            levels=self.model.process.draw_levels(len(rows), generator, self.run.log_sigma),
            noise=torch.randn(pixels.shape, generator=generator),
        )


class DecoderStage:
    """Gives the loop the diffusion loss on true image embeddings, and the same on validation images."""

    name = "decoder"
    best_is = ("loss", "lowest")
    model_class: ClassVar[type[DiffusionDecoder]] = DiffusionDecoder

    def __init__(self, run: DecoderRun, model: DiffusionDecoder, inputs: Inputs, device: torch.device):
        self.run = run
        self.model = model
        self.inputs = inputs
        self.device = device
        self.objective = DecoderObjective(model, run.min_snr)
        self.batches = DecoderBatches(run, model, inputs)
        self.size = len(inputs.train)

    @classmethod
    def build_model(cls, run: DecoderRun, shapes: Shapes) -> DiffusionDecoder:
        network = replace(
            run.model.network,
            embed_dim=shapes.embed_dim,
            text_width=shapes.text_width,
            image_size=shapes.image_size,
            channels=shapes.channels,
        )
        return cls.model_class(replace(run.model, network=network))

    def fit_buffers(self) -> None:
        """Fit the scaling of the embeddings that the decoder reads."""
        self.model.network.image_condition.scaler.fit(self.inputs.train.embeddings)

    def batch(self, draw: StepDraw) -> DecoderBatch:
        return self.batches.draw(draw)

    def figures(self, batch: DecoderBatch) -> dict[str, float | Tensor]:
        return {"chance_loss": self.objective.chance(batch)}

    def evaluate(self, model: DiffusionDecoder) -> dict[str, float]:
        """The loss on validation images with nothing dropped; times and noise are the same at every call."""
        generator = torch.Generator().manual_seed(0)
        objective = DecoderObjective(model, self.run.min_snr)
        rows = torch.arange(len(self.inputs.validation))[: self.run.evaluate_on]
        total = 0.0
        for part in rows.split(250):
            loss = objective(self.batches.draw_validation(part, generator).to(self.device))
            total += loss.item() * len(part) / len(rows)
        return {"loss": total}

    def preview(self, model: DiffusionDecoder) -> Image.Image:
        steps = min(self.run.sampling.steps, model.config.diffusion.timesteps)
        return draw_preview(model, self.inputs.validation, replace(self.run.sampling, steps=steps), self.device)


def draw_preview(
    model: DiffusionDecoder, validation: EmbeddedImages, settings: Any, device: torch.device
) -> Image.Image:
    """For the first ten validation images: the image, and seven samples from its true embedding and caption."""
    count = min(10, len(validation))
    caption_ids = validation.data.draw(torch.arange(count), torch.Generator().manual_seed(0))
    rows = torch.arange(count).repeat_interleave(7)
    text = validation.text_features(caption_ids[rows]).to(device)
    embeddings = validation.embeddings[rows].to(device)
    samples = model.draw_images(embeddings, text, list(range(7)) * count, settings)
    samples = to_uint8(samples).cpu().unflatten(0, (count, 7))
    grid = torch.cat([validation.data.images[:count, None], samples], dim=1).permute(0, 1, 3, 4, 2).numpy()
    captions = [validation.data.captions[i] for i in caption_ids]
    headings = ["the image", "drawn from its embedding and caption", *[""] * 6]
    return captioned_grid(list(zip(captions, grid, strict=True)), columns=headings)
