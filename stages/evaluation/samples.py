"""Samples of a pipeline whose decoder is driven by the prior, by true embeddings, or by less."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.dataset import CaptionedImages
from unclip import UnCLIP
from unclip.errors import UserError

DRIVERS = ("true embedding", "prior", "text embedding", "caption alone", "nothing")
"""Inputs that can drive the decoder (Ramesh et al. 2022, section 5.1)."""


class Samples(NamedTuple):
    images: np.ndarray
    """uint8 (N, H, W, C)."""
    embeddings: Tensor | None
    """The image embeddings (N, D) that drove the decoder, on the CPU; None if none did."""


def draw_samples(
    pipe: UnCLIP,
    driver: str,
    captions: Sequence[str],
    n: int,
    seed: int,
    image_size: int,
    true_embeddings: Tensor | None = None,
    **settings,
) -> Samples:
    """Draw n images per caption; image i of all has the seed `seed + i`.

    Args:
        driver: one of DRIVERS.
        image_size: height and width of the returned images. A part after the decoder may have enlarged them.
        true_embeddings: the image embeddings (N, D) for the driver "true embedding".
        settings: how to sample, by the names that the pipeline takes.
    """
    captions = [caption for caption in captions for _ in range(n)]
    seeds = list(range(seed, seed + len(captions)))
    embeddings = None
    if driver == "true embedding":
        embeddings = true_embeddings
    elif driver == "prior":
        drawn = pipe(captions, 1, seeds, **settings)
        return Samples(resize_images(drawn.images, image_size), drawn.embeddings.cpu())
    elif driver == "text embedding":
        embeddings = pipe.encode_text(captions).cpu()
    elif driver == "nothing":
        captions = [""] * len(captions)
    images = pipe.decode(embeddings, captions, seeds, **settings)
    return Samples(resize_images(images, image_size), embeddings)


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 images (N, H, W, C) to (N, size, size, C); those of this size are returned as they are."""
    if images.shape[1:3] == (size, size):
        return images
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    resized = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def choose_rows(data: CaptionedImages, matching: dict[str, Tensor], n: int) -> Tensor:
    """Choose n images per caption, and return their rows, those of the first caption first.

    `matching` tells for each caption which of the images show it: bool (N,). Raises UserError if none does.
    """
    for caption, is_match in matching.items():
        if not is_match.any():
            raise UserError(f"{data.name} lacks images of {caption!r}; raise --data.limit")
    return torch.cat([repeat_rows(is_match.nonzero()[:, 0], n) for is_match in matching.values()])


def repeat_rows(rows: Tensor, n: int) -> Tensor:
    """Return the first n rows, starting again from the first where there are fewer."""
    return rows[torch.arange(n) % len(rows)]
