"""The judge of generated images: a small convolutional classifier, trained once on the real ones and cached.

It shares nothing with the stages that it judges: not CLIP, not the captions, not the decoder. Its penultimate features
are also what the Frechet distance, precision and recall are taken on.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from data.dataset import CaptionedImages, random_flip, random_shift
from stages import loop
from stages.embed import CACHE
from unclip.checkpoint import Manifest, load_stage, sha256
from unclip.clip import CLIP, Preprocess
from unclip.images import captioned_grid, to_float


@dataclass(frozen=True)
class ClassifierConfig:
    classes: int = 10
    """Number of classes."""
    channels: int = 1
    """1 for grey, 3 for colour."""
    width: int = 32
    """Channels of the first level; the two levels after it have twice and four times as many."""


class Classifier(nn.Module):
    """Three levels of two convolutions, each at half the size of the one before; then the mean over the places."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config

        def level(channels: int, out: int) -> list[nn.Module]:
            first, second = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
            return [first, nn.GroupNorm(8, out), nn.SiLU(), second, nn.GroupNorm(8, out), nn.SiLU()]

        w = config.width
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2), *level(4 * config.channels, w), nn.MaxPool2d(2), *level(w, 2 * w),
            nn.MaxPool2d(2), *level(2 * w, 4 * w), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(4 * w, config.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, C, H, W) -> logits (B, classes) and features (B, 4 width)."""
        features = self.body(to_float(images))
        return self.head(features), features


class ClassifierStage:
    """Gives the loop the cross-entropy on real images, and the accuracy on held-out ones."""

    name = "classifier"
    best_is = ("accuracy", "highest")

    def __init__(self, model: Classifier, data: CaptionedImages, held_out: CaptionedImages, device: torch.device):
        self.model, self.data, self.held_out, self.device = model, data, held_out, device
        self.size = len(data)

    def loss(self, model: Classifier, rows: Tensor) -> tuple[Tensor, dict[str, float | Tensor]]:
        images = random_shift(random_flip(self.data.images[rows]), pixels=1)
        logits, _ = model(images.to(self.device))
        return F.cross_entropy(logits, self.data.labels[rows].to(self.device), label_smoothing=0.1), {}

    def evaluate(self, model: Classifier) -> dict[str, float]:
        logits, _ = judge(model, self.held_out.images)
        return {"accuracy": (logits.argmax(dim=1) == self.held_out.labels).float().mean().item()}

    def preview(self, model: Classifier) -> Image.Image:
        """For each class the held-out images that are most surely taken for it."""
        logits, _ = judge(model, self.held_out.images)
        best = logits.log_softmax(dim=1).T.topk(min(8, len(logits)), dim=1).indices
        images = self.held_out.images.permute(0, 2, 3, 1).numpy()
        return captioned_grid([(name, images[i]) for name, i in zip(self.held_out.classes, best, strict=True)])


class CaptionJudge(nn.Module):
    """For data without classes: the pipeline's own CLIP, which says whose caption an image is nearest to.

    It is no independent judge, and flatters a pipeline that it is part of.
    """

    def __init__(self, clip: CLIP, preprocess: Preprocess, text: Tensor):
        """`text` are the unit embeddings (classes, D) of the captions to choose from."""
        super().__init__()
        self.clip, self.preprocess, self.text = clip, preprocess, text

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, C, H, W) -> cosines (B, classes) and unit embeddings (B, D)."""
        embeddings = self.clip.encode_image(self.preprocess(images))
        return embeddings @ self.text.T, embeddings


@torch.inference_mode()
def judge(
    model: Classifier | CaptionJudge, images: Tensor | np.ndarray, batch_size: int = 500
) -> tuple[Tensor, Tensor]:
    """Scores (N, classes) and features (N, F), on the CPU, of uint8 images (N, C, H, W); of arrays (N, H, W, C)."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    device = next(model.parameters()).device
    parts = [model(part.to(device)) for part in images.split(batch_size)]
    logits, features = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return logits, features


def trained_classifier(
    data: CaptionedImages,
    held_out: CaptionedImages,
    config: loop.TrainConfig,
    device: torch.device,
    cache: Path = CACHE,
) -> Classifier:
    """The classifier of a data set from the cache; trained and stored if it is not there.

    Args:
        data: labelled images to train on.
        held_out: those that pick the best weights.
        cache: the classifier's own folder inside it is named after the data and the settings.
    """
    # The captions have no part in it: other phrasings need no other judge.
    source = {"name": data.name, "fingerprint": sha256(data.images.numpy().tobytes() + data.labels.numpy().tobytes())}
    settings = {key: value for key, value in asdict(config).items() if key != "device"}
    torch.manual_seed(config.seed)
    model = Classifier(ClassifierConfig(classes=len(data.classes), channels=data.channels))
    key = sha256(json.dumps([source, settings, asdict(model.config)]).encode())
    folder = cache / f"classifier-{key[:16]}"
    stage = ClassifierStage(model, data, held_out, device)
    loop.train(stage, config, device, folder, Manifest(stage.name, data=source, training=settings))
    return load_stage(folder / stage.name, Classifier, ClassifierConfig)[0].to(device)
