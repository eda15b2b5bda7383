"""What every source of captioned images gives to the trainers, and how batches are drawn from it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@dataclass
class CaptionedImages:
    """Images in memory, and a numbered list of all the captions that describe any of them."""

    name: str
    images: Tensor
    """uint8 (N, C, H, W)."""
    captions: list[str]
    """Every caption that `draw` can choose; each is tokenised and encoded once."""
    draw: Callable[[Tensor, bool], Tensor]
    """draw(rows (B,), one_phrasing) -> ids (B,) into `captions`, from torch's global generator. With one_phrasing the
    captions of the batch that mean the same are the same string, as far as the source can tell."""
    labels: Tensor | None = None
    """Classes (N,), where there are any."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""
    class_captions: tuple[str, ...] = ()
    """The plain caption of each class: "an image of a sneaker"."""
    class_prompts: tuple[tuple[str, ...], ...] = ()
    """All phrasings of each class that say no more than it, for zero-shot classification by an ensemble of them."""
    codes: Tensor | None = None
    """Attribute codes (N, 2), see data/captions.py."""
    thirds: Tensor | None = field(default=None, repr=False)
    """Bounds of the attributes by class, see data/captions.py."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.images.shape[2]

    def first(self, count: int | None) -> "CaptionedImages":
        """The first `count` images; all of them for None."""
        if count is None or count >= len(self):
            return self
        parts = {k: None if (v := getattr(self, k)) is None else v[:count] for k in ("images", "labels", "codes")}
        return replace(self, name=f"{self.name}[:{count}]", **parts)

    def captions_as_classes(self) -> "CaptionedImages":
        """The same with each distinct caption (one of them where an image has several) as a class."""
        torch.manual_seed(0)
        distinct, labels = self.draw(torch.arange(len(self)), True).unique(return_inverse=True)
        captions = tuple(self.captions[i] for i in distinct)
        prompts = tuple((caption,) for caption in captions)
        return replace(self, labels=labels, classes=captions, class_captions=captions, class_prompts=prompts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the images and the captions."""
        digest = hashlib.sha256(self.images.numpy())
        digest.update(json.dumps([list(self.images.shape), self.captions]).encode())
        return digest.hexdigest()


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


def random_flip(images: Tensor) -> Tensor:
    """Mirror each image (B, C, H, W) with probability one half."""
    flip = torch.rand(len(images)) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Shift each image (B, C, H, W) by up to `pixels` either way, a whole batch at once; what enters is black."""
    if pixels == 0:
        return images
    batch, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    dy, dx = torch.randint(2 * pixels + 1, (2, batch, 1))
    rows = dy + torch.arange(height)  # (B, H)
    columns = dx + torch.arange(width)  # (B, W)
    picked = padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return picked.permute(0, 3, 1, 2)
