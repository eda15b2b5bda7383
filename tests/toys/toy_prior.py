"""A prior of our own: a linear map of the text embedding, and a little noise."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages.loop import TrainConfig
from stages.run_options import FrozenCLIPRun
from unclip.diffusion import RowNoise
from unclip.fields import bounded, from_data
from unclip.registry import Kind
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class LinearPriorConfig:
    embed_dim: int = from_data(0, 0, 16_384)


class LinearPrior(nn.Module):
    config_class = LinearPriorConfig

    def __init__(self, config: LinearPriorConfig):
        super().__init__()
        self.config = config
        self.map = nn.Linear(config.embed_dim, config.embed_dim)

    @torch.inference_mode()
    def draw_embeddings(self, text, seeds, settings):
        mean = self.map(text.embedding.masked_fill(text.empty[:, None], 0))
        return F.normalize(mean + 0.02 * RowNoise(seeds, 1)(mean), dim=-1)


@dataclass(frozen=True)
class LinearPriorRun(FrozenCLIPRun):
    kind: str = bounded("linear", affects_weights=False)
    model: LinearPriorConfig = bounded(LinearPriorConfig(), affects_weights=False)


@dataclass(frozen=True)
class Pairs(TensorBatch):
    text: Tensor
    images: Tensor


class LinearPriorObjective(nn.Module):
    def __init__(self, model: LinearPrior):
        super().__init__()
        self.model = model

    def forward(self, batch: Pairs) -> Tensor:
        return F.mse_loss(self.model.map(batch.text), batch.images)


class LinearPriorStage:
    name = "prior"
    best_is = ("size", "lowest")

    def __init__(self, run, model, inputs, device):
        self.model = model
        self.images = inputs.train
        self.objective = LinearPriorObjective(model)
        self.size = len(inputs.train)

    @staticmethod
    def build_model(run, shapes):
        return LinearPrior(replace(run.model, embed_dim=shapes.embed_dim))

    def fit_buffers(self):
        """There are none."""

    def batch(self, draw):
        caption_ids = draw.share(self.images.data.draw(draw.rows, draw.generator))
        return Pairs(self.images.text_embeddings[caption_ids], self.images.embeddings[draw.share(draw.rows)])

    def figures(self, batch):
        return {}

    def evaluate(self, model):
        return {"size": model.map.weight.norm().item()}

    def preview(self, model):
        return Image.new("L", (4, 4))


TINY = TrainConfig(steps=4, batch_size=8, evaluate_every=4, preview_every=4)
KIND = Kind(LinearPrior, {"tiny": LinearPriorRun(preset="tiny", train=TINY)}, LinearPriorStage)
