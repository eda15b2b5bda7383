"""The networks that judge generated images: a classifier, or a matcher where the data has no classes.

A matcher tells which of all captions that were asked for is the nearest to an image. Judges share nothing with the
pipeline that they judge: not CLIP, not the prior, not the decoder. The features of their last layer but one are the
space of the Frechet distance, precision and recall. `judge_training.py` trains them.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from unclip.images import to_float

TERMS = 8192
"""Rows of the matcher's table of words and pairs of words. Row 0 is padding."""


@dataclass(frozen=True)
class JudgeConfig:
    classes: int = 10
    """Outputs: a classifier's classes, or the dimension of a matcher's embeddings."""
    channels: int = 1
    """1 for grey, 3 for colour."""
    width: int = 32
    """Channels of the first level; the two levels after it have twice and four times as many."""
    fold: int = 2
    """Height and width in pixels of the squares that the first level works on; a divisor of the image size."""


class Classifier(nn.Module):
    """Three levels of two convolutions, each at half the size of the one before, then the mean over all positions."""

    config_class = JudgeConfig

    def __init__(self, config: JudgeConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.body = nn.Sequential(
            nn.PixelUnshuffle(config.fold),
            *convolutions(config.fold**2 * config.channels, width),
            nn.MaxPool2d(2),
            *convolutions(width, 2 * width),
            nn.MaxPool2d(2),
            *convolutions(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, config.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, C, H, W) -> logits (B, classes) and features (B, 4 width)."""
        features = self.body(to_float(images))
        return self.head(features), features


def convolutions(channels: int, out: int) -> list[nn.Module]:
    """Return the layers of one level."""
    first = nn.Conv2d(channels, out, 3, padding=1)
    second = nn.Conv2d(out, out, 3, padding=1)
    return [first, nn.GroupNorm(8, out), nn.SiLU(), second, nn.GroupNorm(8, out), nn.SiLU()]


class Matcher(nn.Module):
    """Embeds images and captions so that they are close where they match.

    Images pass through a classifier's layers, captions are the sum of the embeddings of their words and pairs of words.
    The position of each pixel is an input too, as captions may say left or right (Liu et al. 2018, arXiv 1807.03247).
    """

    config_class = JudgeConfig

    def __init__(self, config: JudgeConfig):
        super().__init__()
        self.config = config
        self.image_network = Classifier(replace(config, channels=config.channels + 2))
        self.term_table = nn.Embedding(TERMS, config.classes, padding_idx=0)
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.term_table.weight.data.mul_(0.02)  # a word that training never shows then hardly counts
        self.asked_terms = torch.zeros(0, 0, dtype=torch.long)

    def choose_among(self, captions: Sequence[str]) -> "Matcher":
        """Set the captions that `forward` compares images with. Returns the matcher itself."""
        self.asked_terms = term_ids(captions)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, C, H, W) -> cosines to the captions to choose among (B, M) and features (B, F)."""
        embeddings, features = self.embed_images(images)
        return embeddings @ self.embed_captions(self.asked_terms).T, features

    def embed_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, C, H, W) -> unit embeddings (B, D) and features (B, F)."""
        embeddings, features = self.image_network(with_positions(images))
        return F.normalize(embeddings, dim=-1), features

    def embed_captions(self, terms: Tensor) -> Tensor:
        """Captions as `term_ids` returns them (M, L) -> unit embeddings (M, D)."""
        return F.normalize(self.term_table(terms.to(self.logit_scale.device)).sum(dim=1), dim=-1)


def with_positions(images: Tensor) -> Tensor:
    """Add each pixel's height and width as two channels: uint8 (B, C, H, W) -> (B, C + 2, H, W)."""
    y, x = (torch.linspace(0, 255, side, device=images.device).byte() for side in images.shape[2:])
    positions = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(images), -1, -1, -1)  # (B, 2, H, W)
    return torch.cat([images, positions], dim=1)


def term_ids(captions: Sequence[str]) -> Tensor:
    """Return the table's rows of each caption's words and pairs of neighbouring words, (M, L), padded with 0.

    A row is a hash of the word or pair, so there is no vocabulary to keep (Joulin et al. 2016, arXiv 1607.01759,
    section 2.2).
    """
    ids = []
    for caption in captions:
        words = re.findall(r"\w+|[^\w\s]", caption.lower())
        terms = [*words, *map(" ".join, pairwise(words))]
        ids.append(torch.tensor([1 + zlib.crc32(term.encode()) % (TERMS - 1) for term in terms], dtype=torch.long))
    return pad_sequence(ids, batch_first=True)


Judge = Classifier | Matcher


@torch.inference_mode()
def judge_images(judge: Judge, images: Tensor | np.ndarray, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Return a judge's scores (N, classes) and features (N, F), on the CPU.

    Images are uint8: a tensor (N, C, H, W), or an array (N, H, W, C).
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    device = next(judge.parameters()).device
    batches = [judge(batch.to(device)) for batch in images.split(batch_size)]
    scores, features = (torch.cat(column).cpu() for column in zip(*batches, strict=True))
    return scores, features


@torch.inference_mode()
def judge_levels(judge: Judge, images: Tensor) -> list[Tensor]:
    """Return a judge's features (B, F, h, w) of uint8 images (B, C, H, W) at the end of each level, on the CPU."""
    device = next(judge.parameters()).device
    network = judge.image_network if isinstance(judge, Matcher) else judge
    images = images.to(device)
    x = to_float(with_positions(images) if isinstance(judge, Matcher) else images)
    levels = []
    for layer in network.body:
        if isinstance(layer, (nn.MaxPool2d, nn.AdaptiveAvgPool2d)):
            levels.append(x.cpu())
        x = layer(x)
    return levels
