"""What every source of captioned images gives to the trainers, and how batches are drawn from it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from data.class_captions import class_caption
from data.records import Record


class Captioner(Protocol):
    """Says which captions belong to which image."""

    captions: list[str]
    """Every caption that `draw` can choose; each is tokenised and encoded once."""

    def draw(self, rows: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        """A caption's number (B,) for each of the images rows (B,).

        With one_phrasing the captions of the batch that mean the same are the same string, as far as the source can
        tell.
        """

    def assignment(self) -> list[Tensor]:
        """The tensors that say which captions an image may be given, for its fingerprint."""


@dataclass
class ListedCaptions:
    """Each image has its own captions, of which one is drawn."""

    captions: list[str]
    table: Tensor
    """(N, most captions of an image): numbers of each image's captions; what is left of a row is not used."""
    counts: Tensor
    """(N,), how many captions each image has."""

    def draw(self, rows: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        """With one_phrasing all images take, say, their second caption: sources tend to keep an order."""
        pick = torch.rand(1 if one_phrasing else len(rows), generator=generator).expand(len(rows))
        return self.table[rows, (pick * self.counts[rows]).long()]

    def assignment(self) -> list[Tensor]:
        return [self.table, self.counts]


@dataclass
class CaptionedImages:
    """Images in memory, and a numbered list of all the captions that describe any of them."""

    name: str
    images: Tensor
    """uint8 (N, C, H, W)."""
    captioner: Captioner
    labels: Tensor | None = None
    """Classes (N,), where there are any."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""
    class_captions: tuple[str, ...] = ()
    """The plain caption of each class: "an image of a sneaker"."""
    class_prompts: tuple[tuple[str, ...], ...] = ()
    """All phrasings of each class that say no more than it, for zero-shot classification by an ensemble of them."""

    per_image: ClassVar[tuple[str, ...]] = ("images", "labels")
    """The fields with a row per image."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def captions(self) -> list[str]:
        return self.captioner.captions

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.images.shape[2]

    @property
    def example(self) -> str:
        """A caption of this data, to show how it is asked for."""
        return (*self.class_captions, *self.captions)[0]

    def draw(self, rows: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        """Captions for images, see `Captioner.draw`."""
        return self.captioner.draw(rows, generator, one_phrasing)

    def first(self, count: int | None) -> "CaptionedImages":
        """The first `count` images; all of them for None."""
        if count is None or count >= len(self):
            return self
        parts = {name: None if (v := getattr(self, name)) is None else v[:count] for name in self.per_image}
        return replace(self, name=f"{self.name}[:{count}]", **parts)

    def captions_as_classes(self) -> "CaptionedImages":
        """The same with each distinct caption (one of them where an image has several) as a class."""
        drawn = self.draw(torch.arange(len(self)), torch.Generator().manual_seed(0), one_phrasing=True)
        distinct, labels = drawn.unique(return_inverse=True)
        captions = tuple(self.captions[i] for i in distinct)
        prompts = tuple((caption,) for caption in captions)
        return replace(self, labels=labels, classes=captions, class_captions=captions, class_prompts=prompts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the images, the captions, and which belong to which."""
        digest = hashlib.sha256(self.images.numpy())
        digest.update(json.dumps([list(self.images.shape), self.captions]).encode())
        for tensor in self.captioner.assignment():
            digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()


def build_data_set(
    name: str, images: Tensor, records: Sequence[Record], classes: Sequence[str] = ()
) -> CaptionedImages:
    """Number the captions of decoded records; an image with several captions has one of them drawn at each step."""
    caption_ids: dict[str, int] = {}
    ids_by_image = [
        [caption_ids.setdefault(caption, len(caption_ids)) for caption in record.captions] for record in records
    ]
    counts = torch.tensor([len(ids) for ids in ids_by_image])
    table = torch.zeros(len(records), int(counts.max()), dtype=torch.long)
    for row, ids in enumerate(ids_by_image):
        table[row, : len(ids)] = torch.tensor(ids)

    data = CaptionedImages(name, images, ListedCaptions(list(caption_ids), table, counts))
    if not classes:
        return data
    prompts: list[dict[str, None]] = [{} for _ in classes]
    for record in records:
        prompts[record.label] |= dict.fromkeys(record.captions)
    data.labels = torch.tensor([record.label for record in records])
    data.classes = tuple(classes)
    data.class_captions = tuple(map(class_caption, classes))
    data.class_prompts = tuple(
        tuple(distinct) or (caption,) for distinct, caption in zip(prompts, data.class_captions, strict=True)
    )
    return data


def batch_generator(seed: int, step: int) -> torch.Generator:
    """The source of all that is random in a step: a pure function of the two, so that a resumed run draws the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step + 1)


def shuffled_rows(step: int, batch_size: int, size: int, seed: int) -> Tensor:
    """Rows (batch_size,) of the batch at a step: a pure function, so that a resumed run sees the same batches.

    Each pass over the data is a new permutation; a batch may end one pass and begin the next.
    """
    start, rows = step * batch_size, []
    while batch_size > 0:
        epoch, offset = divmod(start, size)
        rows.append(_permutation(size, seed, epoch)[offset : offset + batch_size])
        start, batch_size = start + len(rows[-1]), batch_size - len(rows[-1])
    return torch.cat(rows)


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image (B, C, H, W) with probability one half."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift each image (B, C, H, W) by up to `pixels` either way, a whole batch at once; its edge enters, repeated."""
    return images if pixels == 0 else shift_images(images, random_offsets(len(images), pixels, generator))


def random_offsets(count: int, pixels: int, generator: torch.Generator) -> Tensor:
    """Offsets (N, 2) down and to the right, each up to `pixels` either way."""
    return torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator)[..., 0].T


def shift_images(images: Tensor, offsets: Tensor) -> Tensor:
    """Shift images (B, C, H, W) by offsets (B, 2) in pixels; an image's edge enters, repeated."""
    batch, _, height, width = images.shape
    dy, dx = offsets.T[..., None]
    rows = (dy + torch.arange(height)).clamp(0, height - 1)  # (B, H)
    columns = (dx + torch.arange(width)).clamp(0, width - 1)  # (B, W)
    picked = images[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return picked.permute(0, 3, 1, 2)
