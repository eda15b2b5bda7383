"""Train the decoder: the frozen CLIP's image embeddings, and captions -> pixels."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stages import loop, runtime
from stages.data import DataConfig
from stages.embed import Embedded
from stages.frozen import Frozen, prepare
from unclip.checkpoint import Manifest
from unclip.decoder import Decoder, DecoderConfig, draw_images
from unclip.errors import UserError
from unclip.images import captioned_grid, to_float, to_uint8
from unclip.settings import Sampling


@dataclass(frozen=True)
class DecoderRun:
    out: Path = Path("checkpoints/run")
    """Folder of the pipeline, which holds a trained clip; the decoder goes to its subfolder decoder."""
    preset: str = "quick"
    """Defaults of all other options: tiny (tests), quick (minutes on a laptop), small (hours) or base (one GPU)."""
    init_from: Path | None = None
    """Start from the decoder of the pipeline in this folder; shapes must be equal. Without it: at random."""
    drop_image: float = 0.1
    """Share of the image embeddings that are replaced by the learned null, for guidance."""
    drop_text: float = 0.5
    """Share of the captions that are replaced by the learned null."""
    flip: bool = False
    """Mirror half of the images, each with the embedding of its mirror image."""
    evaluate_on: int = 1000
    """Validation images that the loss is taken on."""
    data: DataConfig = field(default_factory=DataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    train: loop.TrainConfig = field(default_factory=loop.TrainConfig)

    def __post_init__(self):
        if not 0 <= self.drop_image <= 1 or not 0 <= self.drop_text <= 1 or self.evaluate_on < 1:
            raise UserError("--drop-image and --drop-text must lie in 0 .. 1, and --evaluate-on be at least 1")


class DecoderStage:
    """Gives the loop the diffusion loss on true image embeddings, and the same on validation images."""

    name = "decoder"
    best_is = ("loss", "lowest")

    def __init__(self, model: Decoder, frozen: Frozen, run: DecoderRun, device: torch.device):
        self.model, self.frozen, self.run, self.device = model, frozen, run, device
        self.diffusion = model.diffusion()
        self.size = len(frozen.data)

    def loss(self, model: Decoder, rows: Tensor) -> tuple[Tensor, dict[str, float | Tensor]]:
        run, embedded = self.run, self.frozen.embedded
        captions = self.frozen.data.draw(rows, False)
        drop_image, drop_text = torch.rand(len(rows)) < run.drop_image, torch.rand(len(rows)) < run.drop_text
        pixels, image = self.frozen.data.images[rows], embedded.images[rows.to(self.device)]
        if run.flip:
            flip = torch.rand(len(rows)) < 0.5
            pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
            image = torch.where(flip[:, None].to(self.device), embedded.flipped[rows.to(self.device)], image)
        loss = self._weighted_error(model, pixels, image, captions, embedded, drop_image, drop_text)
        return loss, {}

    def _weighted_error(
        self,
        model: Decoder,
        pixels: Tensor,
        image: Tensor,
        captions: Tensor,
        embedded: Embedded,
        drop_image: Tensor,
        drop_text: Tensor,
    ) -> Tensor:
        """Squared error on the target, with min-SNR weights, averaged over the batch.

        Pixels uint8 (B, C, H, W), their embeddings (B, D), caption ids (B,) into `embedded`, and what to drop (B,).
        """
        x0 = to_float(pixels.to(self.device))
        t = self.diffusion.draw_timesteps(len(x0))
        noise = torch.randn(x0.shape).to(self.device)
        _, encodings, mask = embedded.captions(captions)
        condition = model.condition(image, encodings, mask, drop_image.to(self.device), drop_text.to(self.device))
        output = model(self.diffusion.add_noise(x0, noise, t), t.to(self.device), condition)
        error = (output.float() - self.diffusion.target(x0, noise, t)).square().mean(dim=(1, 2, 3))
        return (error * self.diffusion.loss_weight(t).to(self.device)).mean()

    def evaluate(self, model: Decoder) -> dict[str, float]:
        """The loss on validation images with nothing dropped; times and noise are the same at every call."""
        validation, embedded = self.frozen.validation, self.frozen.embedded_validation
        torch.manual_seed(0)
        rows = torch.arange(len(validation))[: self.run.evaluate_on]
        total = 0.0
        for part in rows.split(250):
            captions, keep = validation.draw(part, False), torch.zeros(len(part), dtype=torch.bool)
            image = embedded.images[part.to(self.device)]
            error = self._weighted_error(model, validation.images[part], image, captions, embedded, keep, keep)
            total += error.item() * len(part) / len(rows)
        return {"loss": total}

    def preview(self, model: Decoder) -> Image.Image:
        """For the first ten validation images: the image, and seven draws from its true embedding and caption."""
        validation, embedded = self.frozen.validation, self.frozen.embedded_validation
        torch.manual_seed(0)
        count = min(10, len(validation))
        captions = validation.draw(torch.arange(count), False)
        rows = torch.arange(count).repeat_interleave(7)
        _, encodings, mask = embedded.captions(captions[rows])
        sampling = Sampling(steps=min(Sampling.steps, model.config.timesteps))
        images = embedded.images[rows.to(self.device)]
        drawn = draw_images(model, images, encodings, mask, list(range(7)) * count, sampling)
        grid = torch.cat([validation.images[:count, None], to_uint8(drawn).cpu().unflatten(0, (count, 7))], dim=1)
        grid = grid.permute(0, 1, 3, 4, 2).numpy()
        return captioned_grid([(validation.captions[c], row) for c, row in zip(captions, grid, strict=True)])


def train(run: DecoderRun) -> Manifest:
    """Train a decoder on the CLIP in run.out. Returns the manifest of the trained decoder."""
    device = runtime.start(run.train.device)
    frozen = prepare(run.out, run.data, device, run.flip)
    clip, data = frozen.clip, frozen.data
    torch.manual_seed(run.train.seed)
    model = Decoder(
        replace(
            run.model,
            embed_dim=clip.embed_dim,
            text_width=clip.text.width,
            image_size=data.image_size,
            channels=data.channels,
        )
    )
    model.image_condition.scaler.fit(frozen.embedded.images)
    stage = DecoderStage(model, frozen, run, device)
    manifest = frozen.manifest("decoder", loop.settings(run), loop.start_from(model, run.init_from, "decoder"))
    return loop.train(stage, run.train, device, run.out, manifest)
