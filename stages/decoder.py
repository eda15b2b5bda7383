"""Train the decoder: the frozen CLIP's image embeddings, and captions -> pixels."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages import loop, runtime
from stages.data_config import DataConfig
from stages.embed import EmbeddedImages
from stages.identity import settings
from stages.inputs import Inputs, open_inputs
from stages.memory import WIDTHS, check_fits
from unclip.clip import TextFeatures
from unclip.decoder import Decoder, DecoderConfig
from unclip.fields import bounded
from unclip.grids import captioned_grid
from unclip.images import to_float, to_uint8
from unclip.layers import at_least_float32
from unclip.settings import DecoderSettings
from unclip.store.checkpoint import Manifest
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class DecoderRun:
    out: Path = bounded(Path("checkpoints/run"), affects_weights=False)
    """Folder of the pipeline, which holds a trained clip; the decoder goes to its subfolder decoder."""
    preset: str = bounded("quick", affects_weights=False)
    """Defaults of all other options: tiny (tests), quick (a laptop), small (hours), base (a GPU), paper (a cluster)."""
    init_from: Path | None = bounded(None, affects_weights=False)
    """Start from the decoder of the pipeline in this folder; shapes must be equal. Without it: at random."""
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
    """How the trained decoder is drawn from; noted in the pipeline's model_index.json."""
    data: DataConfig = field(default_factory=DataConfig)
    model: DecoderConfig = bounded(DecoderConfig(), affects_weights=False)
    train: loop.TrainConfig = field(default_factory=loop.TrainConfig)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.log_sigma and self.log_sigma[1] <= 0:
            yield "log_sigma", "be a mean and a deviation above 0"


@dataclass(frozen=True)
class DecoderBatch(TensorBatch):
    pixels: Tensor
    """uint8 (B, C, H, W)."""
    embeddings: Tensor
    """Their unit image embeddings (B, D)."""
    drop: Tensor
    """(B,), True where the embedding is dropped."""
    captions: TextFeatures
    t: Tensor
    """Times (B,)."""
    noise: Tensor
    """(B, C, H, W)."""


class DecoderObjective(nn.Module):
    def __init__(self, model: Decoder, min_snr: float | None = None):
        super().__init__()
        self.model, self.diffusion, self.min_snr = model, model.diffusion(), min_snr

    def forward(self, batch: DecoderBatch) -> Tensor:
        """Squared error on the target, averaged over the batch: noise levels alike, or as `min_snr` weighs them."""
        noised, target = self.diffusion.training_pair(to_float(batch.pixels), batch.noise, batch.t)
        condition = self.model.condition(batch.embeddings, batch.captions, batch.drop)
        return self._loss(at_least_float32(self.model(noised, batch.t, condition)) - target, batch.t)

    def chance(self, batch: DecoderBatch) -> Tensor:
        """The loss of a decoder that answers nothing but zeros."""
        _, target = self.diffusion.training_pair(to_float(batch.pixels), batch.noise, batch.t)
        return self._loss(target, batch.t)

    def _loss(self, error: Tensor, t: Tensor) -> Tensor:
        squared = error.square().mean(dim=(1, 2, 3))  # (B,)
        return (squared if self.min_snr is None else squared * self.diffusion.loss_weight(t, self.min_snr)).mean()


class DecoderStage:
    """Gives the loop the diffusion loss on true image embeddings, and the same on validation images."""

    name = "decoder"
    best_is = ("loss", "lowest")

    def __init__(self, model: Decoder, inputs: Inputs, run: DecoderRun, device: torch.device):
        self.model, self.inputs, self.run, self.device = model, inputs, run, device
        self.objective = DecoderObjective(model, run.min_snr)
        self.diffusion = model.diffusion()
        self.size = len(inputs.train)
        self.std = model.image_condition.scaler.std.cpu()  # now, as later a step would wait for its device

    def batch(self, rows: Tensor, generator: torch.Generator) -> DecoderBatch:
        batch = self._examples(self.inputs.train, rows, generator)
        drop_image, drop_text = torch.rand(2, len(rows), generator=generator)
        return replace(
            batch,
            embeddings=self._perturbed(batch.embeddings, generator),
            drop=drop_image < self.run.drop_image,
            captions=batch.captions.drop(drop_text < self.run.drop_text),
        )

    def _perturbed(self, embeddings: Tensor, generator: torch.Generator) -> Tensor:
        noise = self.run.embedding_noise * self.std * torch.randn(embeddings.shape, generator=generator)
        return F.normalize(embeddings + noise, dim=-1)

    def _examples(self, images: EmbeddedImages, rows: Tensor, generator: torch.Generator) -> DecoderBatch:
        """Images with their embeddings and a caption each, nothing of them dropped, and the noise to train with."""
        pixels = images.data.images[rows]
        return DecoderBatch(
            pixels=pixels,
            embeddings=images.embeddings[rows],
            drop=torch.zeros(len(rows), dtype=torch.bool),
            captions=images.captions(images.data.draw(rows, generator)),
            t=self.diffusion.draw_times(len(rows), generator, self.run.log_sigma),
            noise=torch.randn(pixels.shape, generator=generator),
        )

    def figures(self, batch: DecoderBatch) -> dict[str, float | Tensor]:
        return {"chance_loss": self.objective.chance(batch)}

    def evaluate(self, model: Decoder) -> dict[str, float]:
        """The loss on validation images with nothing dropped; times and noise are the same at every call."""
        validation, generator = self.inputs.validation, torch.Generator().manual_seed(0)
        objective, total = DecoderObjective(model, self.run.min_snr), 0.0
        rows = torch.arange(len(validation))[: self.run.evaluate_on]
        for part in rows.split(250):
            loss = objective(self._examples(validation, part, generator).to(self.device))
            total += loss.item() * len(part) / len(rows)
        return {"loss": total}

    def preview(self, model: Decoder) -> Image.Image:
        """For the first ten validation images: the image, and seven draws from its true embedding and caption."""
        validation = self.inputs.validation
        count = min(10, len(validation))
        ids = validation.data.draw(torch.arange(count), torch.Generator().manual_seed(0))
        rows = torch.arange(count).repeat_interleave(7)
        captions = validation.captions(ids[rows]).to(self.device)
        settings = replace(self.run.sampling, steps=min(self.run.sampling.steps, model.config.timesteps))
        drawn = model.draw(validation.embeddings[rows].to(self.device), captions, list(range(7)) * count, settings)
        drawn = to_uint8(drawn).cpu().unflatten(0, (count, 7))
        grid = torch.cat([validation.data.images[:count, None], drawn], dim=1).permute(0, 1, 3, 4, 2).numpy()
        rows = [(validation.data.captions[c], row) for c, row in zip(ids, grid, strict=True)]
        return captioned_grid(rows, columns=["the image", "drawn from its embedding and caption", *[""] * 6])


def fit(model: Decoder, images: EmbeddedImages) -> None:
    """Take the statistics of the embeddings that the decoder reads."""
    model.image_condition.scaler.fit(images.embeddings)


def train(run: DecoderRun) -> Manifest:
    """Train a decoder on the CLIP in run.out. Returns the manifest of the trained decoder."""
    device = runtime.start(run.train.device)
    check_fits(lambda: Decoder(replace(run.model, **WIDTHS)), device, shared=run.train.shard)
    inputs = open_inputs(run.out, run.data, device)
    clip, data = inputs.clip, inputs.train.data
    shapes = {"embed_dim": clip.embed_dim, "text_width": clip.text.width}
    shapes |= {"image_size": data.image_size, "channels": data.channels}
    with runtime.seeded(run.train.seed):
        model = Decoder(replace(run.model, **shapes))
    start = inputs.start(model, run.init_from, "decoder", lambda: fit(model, inputs.train))
    manifest = inputs.manifest("decoder", settings(run), asdict(run.sampling), start)
    return loop.train(DecoderStage(model, inputs, run, device), run.train, device, run.out, manifest)
