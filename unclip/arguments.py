"""What users pass, in any kind that is common, as what the pipeline computes with; or one clear line.

Numbers may be Python's, numpy's or torch's; sequences lists, tuples, generators or arrays of any strides.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.errors import UserError, reason, shown

Captions = str | Iterable[str]
Images = Tensor | np.ndarray | Image.Image | Iterable[Image.Image | np.ndarray | Tensor]
MAX_SAMPLES = 10**6
"""Samples of one call: they are all held in memory."""


def caption_list(captions: Captions) -> list[str]:
    """Captions as a list. Raises UserError if there are none, or for what is not text."""
    if not isinstance(captions, (str, Iterable)) or isinstance(captions, (bytes, Mapping, set)):
        raise UserError(f"captions must be a string or a list of strings, not {shown(captions)}")
    captions = [str(captions)] if isinstance(captions, str) else list(captions)
    if not captions:
        raise UserError("the list of captions is empty; give at least one")
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f"a caption must be a string, not {shown(caption)}")
    return [str(caption) for caption in captions]  # numpy has strings of its own


def samples_per_caption(n: Any, captions: int) -> int:
    """Samples per caption. Raises UserError for what is not a whole number, or too many to hold in memory."""
    try:
        n = operator.index(n)
    except TypeError:
        raise UserError(f"n must be a whole number, not {shown(n)}") from None
    if n < 1:
        raise UserError(f"n must be at least 1, not {n}")
    if n * captions > MAX_SAMPLES:
        raise UserError(
            f"{n * captions} samples do not fit in memory; draw at most {MAX_SAMPLES} at once, or use sample.py"
        )
    return n


def image_batch(images: Images) -> Tensor | Sequence[Image.Image]:
    """uint8 (N, C, H, W), or PIL images as they are. Raises UserError for anything else, or for none."""
    if isinstance(images, Image.Image):
        return [images]
    if not isinstance(images, (Tensor, np.ndarray)):
        if not isinstance(images, Iterable) or isinstance(images, (str, bytes, Mapping)):
            raise UserError(f"images must be PIL images or uint8 arrays (N, H, W, 1 or 3), not {shown(images)}")
        images = list(images)
        if not images:
            raise UserError("the list of images is empty; give at least one")
        if all(isinstance(image, Image.Image) for image in images):
            return images
        images = _tensor(images, "images")
    pixels = _tensor(images, "images")
    if pixels.ndim != 4 or pixels.dtype != torch.uint8 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise UserError(f"images must be uint8 (N, H, W, 1 or 3), not {pixels.dtype} {tuple(pixels.shape)}")
    return pixels.permute(0, 3, 1, 2)


def unit_embeddings(embeddings: Any, width: int) -> Tensor:
    """Unit embeddings (N, width) in float32; what has another length is brought to 1.

    Raises UserError for another shape, and for numbers that are not finite or all zero.
    """
    embeddings = _tensor(embeddings, "embeddings").detach().float()
    if embeddings.ndim != 2 or embeddings.shape[1] != width or len(embeddings) == 0:
        raise UserError(f"embeddings must be (N, {width}) with N at least 1, not {tuple(embeddings.shape)}")
    norms = embeddings.norm(dim=1, keepdim=True)
    bad = ~norms.isfinite() | (norms == 0)
    if bad.any():
        row = int(bad.flatten().nonzero()[0])
        raise UserError(f"embeddings must be finite and not zero, but row {row} has the length {norms[row].item():g}")
    return torch.where((norms - 1).abs() < 1e-4, embeddings, F.normalize(embeddings, dim=1))


def noise_like(noise: Any, own: Tensor) -> Tensor:
    """Noise as the decoder's own is. Raises UserError for another shape, or numbers that are not finite."""
    noise = _tensor(noise, "noise")
    if noise.shape != own.shape:
        raise UserError(f"noise must be {tuple(own.shape)}, not {tuple(noise.shape)}")
    noise = noise.detach().to(own)
    if not noise.isfinite().all():
        raise UserError("noise must be finite; it holds NaN or infinity")
    return noise


def device_named(device: Any) -> torch.device:
    """Raises UserError for a device that torch does not know."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"device must be one such as cpu or cuda, not {shown(device)} ({reason(error)})") from None


def _tensor(values: Any, name: str) -> Tensor:
    """Any array, or list of numbers or arrays, as a tensor. Raises UserError for what is neither."""
    try:
        if isinstance(values, Tensor):
            return values
        if not isinstance(values, np.ndarray):
            values = list(values)
            if values and all(isinstance(one, Tensor) for one in values):
                return torch.stack(values)
        copy = np.array(values)  # torch takes no negative strides, and warns of what cannot be written to
        return torch.from_numpy(copy.astype(copy.dtype.newbyteorder("=")))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} must be an array of numbers, all of one shape ({reason(error)})") from None
