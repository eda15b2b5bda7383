"""The judges of generated images: small networks, each trained once on the real images and cached.

They share nothing with the stages that they judge: not CLIP, not the prior, not the decoder. Where the data has classes
a classifier judges, else a matcher, which finds the nearest of all captions that were asked for. The features of their
last layer but one are what the Frechet distance, precision and recall are taken on.
"""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from data.dataset import CaptionedImages, random_flip, random_shift
from stages import loop, runtime
from stages.batches import StepDraw
from stages.clip import CLIPBatch
from stages.embed import CACHE
from stages.identity import settings
from unclip.clip.loss import contrastive_loss
from unclip.grids import captioned_grid
from unclip.images import to_float
from unclip.store.checksums import sha256
from unclip.store.formats import FORMAT
from unclip.store.manifest import Manifest
from unclip.store.parts import load_part
from unclip.tensor_batch import TensorBatch

WORDS = 8192
"""Rows of the matcher's table of words and pairs of words."""
KEPT = 0.7
"""Share of a caption's words and pairs that a training step shows the matcher, so that it learns each by itself."""


@dataclass(frozen=True)
class ClassifierConfig:
    classes: int = 10
    """Number of classes; of a matcher, coordinates of an embedding."""
    channels: int = 1
    """1 for grey, 3 for colour."""
    width: int = 32
    """Channels of the first level; the two levels after it have twice and four times as many."""
    fold: int = 2
    """Pixels per side of the squares that the first level works on; a divisor of the image size."""


@dataclass(frozen=True)
class LabelledBatch(TensorBatch):
    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """(B,)."""


class Classifier(nn.Module):
    """Three levels of two convolutions, each at half the size of the one before; then the mean over the places."""

    config_class = ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config

        def level(channels: int, out: int) -> list[nn.Module]:
            first, second = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
            return [first, nn.GroupNorm(8, out), nn.SiLU(), second, nn.GroupNorm(8, out), nn.SiLU()]

        w, fold = config.width, config.fold
        self.body = nn.Sequential(
            nn.PixelUnshuffle(fold), *level(fold**2 * config.channels, w), nn.MaxPool2d(2), *level(w, 2 * w),
            nn.MaxPool2d(2), *level(2 * w, 4 * w), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(4 * w, config.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, C, H, W) -> logits (B, classes) and features (B, 4 width)."""
        features = self.body(to_float(images))
        return self.head(features), features

    def batch(self, data: CaptionedImages, rows: Tensor, generator: torch.Generator) -> LabelledBatch:
        images = random_flip(data.images[rows], generator)
        return LabelledBatch(random_shift(images, 1, generator), data.labels[rows])

    def loss(self, batch: LabelledBatch) -> Tensor:
        return F.cross_entropy(self(batch.images)[0], batch.labels, label_smoothing=0.1)


class Matcher(nn.Module):
    """Embeds images by the classifier's layers, and captions by their words and pairs of words, close where they match.

    The classifier is given each pixel's place too, as captions may say left or right (Liu et al. 2018, arXiv
    1807.03247).
    """

    config_class = ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.images = Classifier(replace(config, channels=config.channels + 2))
        self.words = nn.Embedding(WORDS, config.classes, padding_idx=0)
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.words.weight.data.mul_(0.02)  # a word that training never shows says next to nothing
        self.choices = torch.zeros(0, 0, dtype=torch.long)

    def choose_among(self, captions: Sequence[str]) -> "Matcher":
        self.choices = term_ids(captions)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, C, H, W) -> cosines to the captions to choose among (B, M) and features (B, F)."""
        embeddings, features = self.embed_images(images)
        return embeddings @ self.embed_captions(self.choices).T, features

    def embed_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, D) and features (B, F)."""
        y, x = (torch.linspace(0, 255, side, device=images.device).byte() for side in images.shape[2:])
        places = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(images), -1, -1, -1)  # (B, 2, H, W)
        embeddings, features = self.images(torch.cat([images, places], dim=1))
        return F.normalize(embeddings, dim=-1), features

    def embed_captions(self, ids: Tensor) -> Tensor:
        """Captions as `term_ids` gives them (M, L) -> unit embeddings (M, D)."""
        return F.normalize(self.words(ids.to(self.logit_scale.device)).sum(dim=1), dim=-1)

    def batch(self, data: CaptionedImages, rows: Tensor, generator: torch.Generator) -> CLIPBatch:
        """Images are not mirrored: captions may say left or right."""
        images = random_shift(data.images[rows], 1, generator)
        distinct, caption = data.draw(rows, generator, one_phrasing=True).unique(return_inverse=True)
        ids = term_ids([data.captions[i] for i in distinct])
        return CLIPBatch(images, caption, ids * (torch.rand(ids.shape, generator=generator) < KEPT))

    def loss(self, batch: CLIPBatch) -> Tensor:
        scale = self.logit_scale.exp().clamp(max=100)
        text = self.embed_captions(batch.token_ids)
        return contrastive_loss(self.embed_images(batch.images)[0], text, batch.caption_id, scale)


def term_ids(captions: Sequence[str]) -> Tensor:
    """For each caption the table's rows of its words and pairs of neighbouring words, (M, L), padded with 0.

    A row is a hash, so that there is no vocabulary to keep (Joulin et al. 2016, arXiv 1607.01759, section 2.2).
    """
    ids = []
    for caption in captions:
        words = re.findall(r"\w+|[^\w\s]", caption.lower())
        terms = [*words, *map(" ".join, pairwise(words))]
        ids.append(torch.tensor([1 + zlib.crc32(term.encode()) % (WORDS - 1) for term in terms], dtype=torch.long))
    return pad_sequence(ids, batch_first=True)


Judge = Classifier | Matcher


@torch.inference_mode()
def judge(model: Judge, images: Tensor | np.ndarray, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Scores (N, classes) and features (N, F), on the CPU, of uint8 images (N, C, H, W); of arrays (N, H, W, C)."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    device = next(model.parameters()).device
    parts = [model(part.to(device)) for part in images.split(batch_size)]
    scores, features = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return scores, features


class JudgeObjective(nn.Module):
    def __init__(self, model: Judge):
        super().__init__()
        self.model = model

    def forward(self, batch: TensorBatch) -> Tensor:
        return self.model.loss(batch)


class JudgeStage:
    """Gives the loop a judge's loss on real images, and its accuracy on those held out to choose the best weights."""

    best_is = ("accuracy", "highest")

    def __init__(self, model: Judge, data: CaptionedImages, held_out: CaptionedImages):
        self.name, self.model = type(model).__name__.lower(), model
        self.objective = JudgeObjective(model)
        self.data, self.held_out, self.size = data, held_out, len(data)

    def batch(self, draw: StepDraw) -> TensorBatch:
        return draw.share(self.model.batch(self.data, draw.rows, draw.generator))

    def figures(self, batch: TensorBatch) -> dict[str, float | Tensor]:
        return {}

    def evaluate(self, model: Judge) -> dict[str, float]:
        scores, _ = judge(model, self.held_out.images)
        return {"accuracy": (scores.argmax(dim=1) == self.held_out.labels).float().mean().item()}

    def preview(self, model: Judge) -> Image.Image:
        """For some classes the held-out images that are most surely taken for them."""
        scores, _ = judge(model, self.held_out.images)
        best = scores.log_softmax(dim=1).T.topk(min(8, len(scores)), dim=1).indices
        images = self.held_out.images.permute(0, 2, 3, 1).numpy()
        rows = [(name, images[i]) for name, i in zip(self.held_out.classes, best, strict=True)]
        return captioned_grid(rows[:20], columns=["held-out images that are most surely taken for it"])


def trained_judge(
    data: CaptionedImages,
    held_out: CaptionedImages,
    config: loop.TrainConfig,
    device: torch.device,
    cache: Path = CACHE,
) -> Judge:
    """The judge of the training images `data` from the cache; trained and stored if it is not there.

    A classifier if they have labels, else a matcher. `held_out`, with classes, or captions as such, picks the best
    weights. The judge's own folder in `cache` is named after the data, the settings, and the format of its files, so
    that one which another version wrote does not stand in the way.
    """
    # as coarse as leaves ten squares per side: 2 pixels for images of 28, 4 for 64
    fold = max(n for n in (1, 2, 4, 8, 16) if n == 1 or (data.image_size % n == 0 and data.image_size >= 10 * n))
    shape = ClassifierConfig(len(data.classes) or 128, data.channels, fold=fold)
    with runtime.seeded(config.seed):
        model = Classifier(shape) if data.classes else Matcher(shape).choose_among(held_out.class_captions)
    # A classifier knows no captions: other phrasings need no other judge.
    labelled = data.images.numpy().tobytes() + data.labels.numpy().tobytes() if data.classes else b""
    source = {"name": data.name, "fingerprint": sha256(labelled) if labelled else data.fingerprint}
    training = settings(config)
    stage = JudgeStage(model, data, held_out)
    identity = json.dumps([FORMAT, source, training, asdict(shape)])
    folder = cache / f"{stage.name}-{sha256(identity.encode())[:16]}"
    loop.train(stage, config, device, folder, Manifest(stage.name, data=source, training=training))
    return load_part(folder / stage.name, type(model))[0].to(device)
