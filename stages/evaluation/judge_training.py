"""Train a judge on the real images, once for each data set and settings, and cache it."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from data.augmentation import random_flip, random_shift
from data.dataset import CaptionedImages
from stages import loop, runtime
from stages.batches import StepDraw
from stages.embed import CACHE
from stages.evaluation.judge import Classifier, Judge, JudgeConfig, Matcher, judge_images, term_ids
from stages.identity import settings
from unclip.clip.loss import contrastive_loss
from unclip.errors import UserError
from unclip.grids import captioned_grid
from unclip.store.checksums import sha256
from unclip.store.formats import FORMAT
from unclip.store.lock import in_turn
from unclip.store.manifest import Manifest
from unclip.store.parts import load_part
from unclip.tensor_batch import TensorBatch

KEPT_TERMS = 0.7
"""The share of a caption's words and pairs that a training step shows, so that the matcher learns each by itself."""
SHOWN_CLASSES = 20
"""Classes in a preview, at most."""


@dataclass(frozen=True)
class LabelledBatch(TensorBatch):
    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """(B,)."""


@dataclass(frozen=True)
class MatcherBatch(TensorBatch):
    images: Tensor
    """uint8 (B, C, H, W)."""
    caption_rows: Tensor
    """The row of `terms` (B,) that is each image's caption."""
    terms: Tensor
    """The distinct captions as `term_ids` returns them (U, L)."""

    def split(self, parts: int) -> list["MatcherBatch"]:
        """Return the batch as it is: all of its images are contrasted with all of its captions."""
        return [self]


def draw_labelled_batch(data: CaptionedImages, rows: Tensor, generator: torch.Generator) -> LabelledBatch:
    images = random_flip(data.images[rows], generator)
    return LabelledBatch(random_shift(images, 1, generator), data.labels[rows])


def draw_matcher_batch(data: CaptionedImages, rows: Tensor, generator: torch.Generator) -> MatcherBatch:
    """Draw a batch with part of each caption. Images are not mirrored: captions may say left or right."""
    images = random_shift(data.images[rows], 1, generator)
    distinct, caption_rows = data.draw(rows, generator, one_phrasing=True).unique(return_inverse=True)
    terms = term_ids([data.captions[caption_id] for caption_id in distinct])
    is_kept = torch.rand(terms.shape, generator=generator) < KEPT_TERMS
    return MatcherBatch(images, caption_rows, terms * is_kept)


class ClassifierObjective(nn.Module):
    """The cross entropy of the labels, smoothed."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model

    def forward(self, batch: LabelledBatch) -> Tensor:
        logits, _ = self.model(batch.images)
        return F.cross_entropy(logits, batch.labels, label_smoothing=0.1)


class MatcherObjective(nn.Module):
    """The contrastive loss of images and captions, as CLIP's."""

    def __init__(self, model: Matcher):
        super().__init__()
        self.model = model

    def forward(self, batch: MatcherBatch) -> Tensor:
        scale = self.model.logit_scale.exp().clamp(max=100)
        text = self.model.embed_captions(batch.terms)
        image, _ = self.model.embed_images(batch.images)
        return contrastive_loss(image, text, batch.caption_rows, scale)


class JudgeStage:
    """A judge's training, as the loop takes it. Accuracy on held-out real images picks the best weights."""

    best_is = ("accuracy", "highest")

    def __init__(
        self,
        name: str,
        objective: ClassifierObjective | MatcherObjective,
        draw_batch: Callable[[CaptionedImages, Tensor, torch.Generator], TensorBatch],
        data: CaptionedImages,
        held_out: CaptionedImages,
    ):
        self.name = name
        self.model = objective.model
        self.objective = objective
        self.draw_batch = draw_batch
        self.data = data
        self.held_out = held_out
        self.size = len(data)

    def batch(self, draw: StepDraw) -> TensorBatch:
        return draw.share(self.draw_batch(self.data, draw.rows, draw.generator))

    def figures(self, batch: TensorBatch) -> dict[str, float | Tensor]:
        return {}

    def evaluate(self, model: Judge) -> dict[str, float]:
        scores, _ = judge_images(model, self.held_out.images)
        return {"accuracy": (scores.argmax(dim=1) == self.held_out.labels).float().mean().item()}

    def preview(self, model: Judge) -> Image.Image:
        """Draw, for some classes, the held-out images that the judge assigns to them most confidently."""
        scores, _ = judge_images(model, self.held_out.images)
        best = scores.log_softmax(dim=1).T.topk(min(8, len(scores)), dim=1).indices
        images = self.held_out.images.permute(0, 2, 3, 1).numpy()
        rows = [(name, images[i]) for name, i in zip(self.held_out.classes, best, strict=True)]
        return captioned_grid(rows[:SHOWN_CLASSES], columns=["held-out images that the judge is surest of"])


def trained_judge(
    data: CaptionedImages,
    held_out: CaptionedImages,
    config: loop.TrainConfig,
    device: torch.device,
    cache: Path = CACHE,
) -> Judge:
    """Return the judge of the training images `data` from the cache; train and store it if it is not there.

    It is a classifier if the images have labels, else a matcher. `held_out` picks the best weights; it has classes, or
    its captions as classes. The judge's folder in `cache` is named after the data, the settings, the network, and the
    format of its files, so a judge that another version wrote is never read.
    """
    has_classes = bool(data.classes)
    if not has_classes and config.batch_size < 2:
        raise UserError("--judge.batch-size must be at least 2, not 1: a matcher compares the images of a batch")
    shape = JudgeConfig(len(data.classes) or 128, data.channels, fold=choose_fold(data.image_size))
    with runtime.seeded(config.seed):
        model = Classifier(shape) if has_classes else Matcher(shape).choose_among(held_out.class_captions)
    if has_classes:  # a classifier reads no captions, so other phrasings need no other judge
        fingerprint = sha256(data.images.numpy().tobytes() + data.labels.numpy().tobytes())
        stage = JudgeStage("classifier", ClassifierObjective(model), draw_labelled_batch, data, held_out)
    else:
        fingerprint = data.fingerprint
        stage = JudgeStage("matcher", MatcherObjective(model), draw_matcher_batch, data, held_out)
    source = {"name": data.name, "fingerprint": fingerprint}
    training = settings(config)
    identity = json.dumps([FORMAT, source, training, asdict(shape), list(model.state_dict())])
    folder = cache / f"{stage.name}-{sha256(identity.encode())[:16]}"
    with in_turn(folder) if runtime.is_main() else contextlib.nullcontext():  # the other ranks train with the main one
        loop.train(stage, config, device, folder, Manifest(stage.name, data=source, training=training))
    model, _ = load_part(folder / stage.name, type(model))
    return model.to(device)


def choose_fold(image_size: int) -> int:
    """Return the largest fold that leaves ten squares to a side: 2 pixels for images of 28, 4 for 64."""
    return max(fold for fold in (1, 2, 4, 8, 16) if fold == 1 or (image_size % fold == 0 and image_size >= 10 * fold))
