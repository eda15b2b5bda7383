"""A part of our own that comes after the decoder: it learns one factor of contrast, and doubles the size."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from stages.loop import TrainConfig
from stages.run_options import FrozenCLIPRun
from unclip.fields import bounded
from unclip.images import to_float
from unclip.registry import Kind, Part
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class EnlargerConfig:
    scale: int = bounded(2, 1, 8)


class Enlarger(nn.Module):
    config_class = EnlargerConfig

    def __init__(self, config: EnlargerConfig):
        super().__init__()
        self.config = config
        self.contrast = nn.Parameter(torch.ones(()))

    @torch.inference_mode()
    def process_images(self, images, embeddings, text, seeds, settings):
        enlarged = images.repeat_interleave(self.config.scale, 2).repeat_interleave(self.config.scale, 3)
        return (self.contrast * enlarged).clamp(-1, 1)


@dataclass(frozen=True)
class EnlargerRun(FrozenCLIPRun):
    kind: str = bounded("repeat", affects_weights=False)
    model: EnlargerConfig = bounded(EnlargerConfig(), affects_weights=False)


@dataclass(frozen=True)
class Pixels(TensorBatch):
    pixels: Tensor


class EnlargerObjective(nn.Module):
    def __init__(self, model: Enlarger):
        super().__init__()
        self.model = model

    def forward(self, batch: Pixels) -> Tensor:
        return ((self.model.contrast - 1) * to_float(batch.pixels)).square().mean()


class EnlargerStage:
    name = "enlarger"
    best_is = ("contrast", "highest")

    def __init__(self, run, model, inputs, device):
        self.model = model
        self.images = inputs.train.data.images
        self.objective = EnlargerObjective(model)
        self.size = len(self.images)

    @staticmethod
    def build_model(run, shapes):
        return Enlarger(run.model)

    def fit_buffers(self):
        """There are none."""

    def batch(self, draw):
        return Pixels(self.images[draw.share(draw.rows)])

    def figures(self, batch):
        return {}

    def evaluate(self, model):
        return {"contrast": model.contrast.item()}

    def preview(self, model):
        return Image.new("L", (4, 4))


TINY = TrainConfig(steps=4, batch_size=8, evaluate_every=4, preview_every=4)
KIND = Kind(Enlarger, {"tiny": EnlargerRun(preset="tiny", train=TINY)}, EnlargerStage)
PART = Part({"repeat": KIND}, parents=("clip",), optional=True)
