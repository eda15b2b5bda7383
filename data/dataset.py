"""Captioned images as trainings receive them, whatever source they come from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from data.class_captions import class_caption
from data.records import Record


class Captioner(Protocol):
    """Knows which captions belong to which image."""

    captions: list[str]
    """Every caption that `draw` can choose. Its index here is its caption id. Each is tokenised and encoded once."""
    counts: Tensor
    """How many captions `draw` chooses from for each image (N,), all equally likely; up to a factor."""

    def draw(self, rows: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        """Draw a caption id (B,) for each of the images with indices `rows` (B,).

        With one_phrasing, captions of the batch that mean the same are the same string, as far as the source knows.
        """

    def assignment(self) -> list[Tensor]:
        """The tensors that decide which captions each image may have. They enter the fingerprint of the data."""


@dataclass
class ListedCaptions:
    """Captions that are listed for each image; one of an image's captions is drawn at a time."""

    captions: list[str]
    table: Tensor
    """Caption ids (N, K) of each image, where K is the largest number of captions; the end of a row may be unused."""
    counts: Tensor
    """The number of captions (N,) of each image."""

    def draw(self, rows: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        """Draw caption ids, see `Captioner`. With one_phrasing all images take, say, their second caption.

        Sources tend to list captions of one style at one place.
        """
        pick = torch.rand(1 if one_phrasing else len(rows), generator=generator).expand(len(rows))
        return self.table[rows, (pick * self.counts[rows]).long()]

    def assignment(self) -> list[Tensor]:
        return [self.table, self.counts]


@dataclass
class CaptionedImages:
    """Images, and all captions that describe any of them."""

    name: str
    images: Tensor
    """uint8 (N, C, H, W)."""
    captioner: Captioner
    labels: Tensor | None = None
    """Class numbers (N,), if there are classes."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""
    class_captions: tuple[str, ...] = ()
    """The plain caption of each class: "an image of a sneaker"."""
    class_prompts: tuple[tuple[str, ...], ...] = ()
    """The captions of each class that name nothing but the class, for zero-shot classification by an ensemble."""

    per_image: ClassVar[tuple[str, ...]] = ("images", "labels")
    """The fields that hold one row per image."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def captions(self) -> list[str]:
        return self.captioner.captions

    @property
    def corpus(self) -> list[str]:
        """The captions that a tokenizer is trained on."""
        return self.captions

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.images.shape[2]

    @property
    def example(self) -> str:
        """A caption of this data, for messages and cards that show how to ask for an image."""
        return (*self.class_captions, *self.captions)[0]

    def draw(self, rows: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        """Draw a caption id for each image, see `Captioner.draw`."""
        return self.captioner.draw(rows, generator, one_phrasing)

    @cached_property
    def pair_weights(self) -> Tensor:
        """Weights (N,), 1 on average, under which all pairs of an image and a caption of it count alike.

        Drawing a caption for each image lets every image count alike, so a caption is drawn more often for images that
        have few. Under these weights it stands equally for all of its images, however many captions else they have.
        """
        counts = self.captioner.counts[: len(self)].float()
        return counts / counts.mean()

    def first(self, count: int | None) -> "CaptionedImages":
        """The first `count` images; all of them for None."""
        if count is None or count >= len(self):
            return self
        values = {name: getattr(self, name) for name in self.per_image}
        values = {name: None if value is None else value[:count] for name, value in values.items()}
        return replace(self, name=f"{self.name}[:{count}]", **values)

    def captions_as_classes(self) -> "CaptionedImages":
        """The same images with captions in place of classes: one caption per image, each distinct one is a class."""
        caption_ids = self.draw(torch.arange(len(self)), torch.Generator().manual_seed(0), one_phrasing=True)
        distinct_ids, labels = caption_ids.unique(return_inverse=True)
        captions = tuple(self.captions[caption_id] for caption_id in distinct_ids)
        prompts = tuple((caption,) for caption in captions)
        return replace(self, labels=labels, classes=captions, class_captions=captions, class_prompts=prompts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images, the captions, and their assignment."""
        digest = hashlib.sha256(self.images.numpy())
        digest.update(json.dumps([list(self.images.shape), self.captions]).encode())
        for tensor in self.captioner.assignment():
            digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()


def build_data_set(
    name: str, images: Tensor, records: Sequence[Record], classes: Sequence[str] = ()
) -> CaptionedImages:
    """Build a data set from decoded images (N, C, H, W) and their N records; the classes are those of a listing."""
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
