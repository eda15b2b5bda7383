"""A decoder of our own, without a UNet: two linear layers from the embedding and the noise to the pixels."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages.loop import TrainConfig
from stages.run_options import FrozenCLIPRun
from unclip.diffusion import CLEAN, RowNoise
from unclip.fields import bounded, from_data
from unclip.images import to_float
from unclip.registry import Kind
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class LinearDecoderConfig:
    embed_dim: int = from_data(0, 0, 16_384)
    image_size: int = from_data(28, 1, 1024)
    channels: int = from_data(1, 1, 4)


class LinearDecoder(nn.Module):
    config_class = LinearDecoderConfig

    def __init__(self, config: LinearDecoderConfig):
        super().__init__()
        self.config = config
        self.image_shape = (config.channels, config.image_size, config.image_size)
        self.from_embedding = nn.Linear(config.embed_dim, config.channels * config.image_size**2)
        self.from_noise = nn.Parameter(torch.tensor(0.1))

    def forward(self, embeddings: Tensor, noise: Tensor) -> Tensor:
        return torch.tanh(self.from_embedding(embeddings).view_as(noise) + self.from_noise * noise)

    def draw_noise(self, seeds):
        return RowNoise(seeds, 2)(self.from_noise.new_empty((len(seeds), *self.image_shape)))

    @torch.inference_mode()
    def draw_images(self, embeddings, text, seeds, settings, noise=None, on_step=None):
        noise = self.draw_noise(seeds) if noise is None else noise
        embeddings = text.embedding.new_zeros(len(seeds), self.config.embed_dim) if embeddings is None else embeddings
        images = self(embeddings, noise)
        if on_step:
            on_step(CLEAN, noise, images)
        return images


@dataclass(frozen=True)
class LinearDecoderRun(FrozenCLIPRun):
    kind: str = bounded("linear", affects_weights=False)
    model: LinearDecoderConfig = bounded(LinearDecoderConfig(), affects_weights=False)


@dataclass(frozen=True)
class Pairs(TensorBatch):
    embeddings: Tensor
    pixels: Tensor
    noise: Tensor


class LinearDecoderObjective(nn.Module):
    def __init__(self, model: LinearDecoder):
        super().__init__()
        self.model = model

    def forward(self, batch: Pairs) -> Tensor:
        return F.mse_loss(self.model(batch.embeddings, batch.noise), to_float(batch.pixels))


class LinearDecoderStage:
    name = "decoder"
    best_is = ("noise", "lowest")

    def __init__(self, run, model, inputs, device):
        self.model = model
        self.images = inputs.train
        self.objective = LinearDecoderObjective(model)
        self.size = len(inputs.train)

    @staticmethod
    def build_model(run, shapes):
        sizes = {"image_size": shapes.image_size, "channels": shapes.channels, "embed_dim": shapes.embed_dim}
        return LinearDecoder(replace(run.model, **sizes))

    def fit_buffers(self):
        """There are none."""

    def batch(self, draw):
        rows = draw.share(draw.rows)
        return Pairs(self.images.embeddings[rows], self.images.data.images[rows], draw.normal(*self.model.image_shape))

    def figures(self, batch):
        return {}

    def evaluate(self, model):
        return {"noise": model.from_noise.abs().item()}

    def preview(self, model):
        return Image.new("L", (4, 4))


TINY = TrainConfig(steps=4, batch_size=8, evaluate_every=4, preview_every=4)
KIND = Kind(LinearDecoder, {"tiny": LinearDecoderRun(preset="tiny", train=TINY)}, LinearDecoderStage)
