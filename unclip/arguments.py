"""Convert what users pass to what the pipeline computes with, or refuse it with one clear line.

Numbers may be Python's, numpy's or torch's; sequences may be lists, tuples, generators, or arrays of any strides.
"""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.errors import UserError, quantity, reason, shown

Captions = str | Iterable[str]
MAX_SAMPLES = 10**6
"""Most samples of one call, as all of them are held in memory."""


def caption_list(captions: Captions) -> list[str]:
    """Captions as a list. Raises UserError if there are none, or if one is no string."""
    if not isinstance(captions, (str, Iterable)) or isinstance(captions, (bytes, Mapping, set)):
        raise UserError(f"captions must be a string or a list of strings, not {shown(captions)}")
    captions = [str(captions)] if isinstance(captions, str) else list(captions)
    if not captions:
        raise UserError("the list of captions is empty; give at least one")
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f"a caption must be a string, not {shown(caption)}")
    return [str(caption) for caption in captions]  # numpy's strings become Python's


def captions_per_image(captions: Captions | None, images: int) -> list[str]:
    """One caption for each image, from one for all or one for each; empty captions for None.

    Raises UserError for another number of captions.
    """
    captions = [""] if captions is None else caption_list(captions)
    if len(captions) not in (1, images):
        counts = f"{quantity(len(captions), 'caption')} cannot go with {quantity(images, 'image')}"
        raise UserError(f"{counts}; give one, or one for each")
    return captions * images if len(captions) == 1 else captions


def samples_each(n: Any, inputs: int) -> int:
    """Check n, the number of samples for each of so many captions or images.

    Raises UserError if n is not a whole number of at least 1, or if the samples would not fit in memory.
    """
    try:
        n = operator.index(n)
    except TypeError:
        raise UserError(f"n must be a whole number, not {shown(n)}") from None
    if n < 1:
        raise UserError(f"n must be at least 1, not {n}")
    if n * inputs > MAX_SAMPLES:
        raise UserError(
            f"{n * inputs} samples do not fit in memory; draw at most {MAX_SAMPLES} at once, or use sample.py"
        )
    return n


def unit_embeddings(embeddings: Any, width: int) -> Tensor:
    """Embeddings (N, width) in float32, normalised to unit length.

    Raises UserError for another shape, and for rows that are not finite or all zero.
    """
    embeddings = _tensor(embeddings, "embeddings").float()
    if embeddings.ndim != 2 or embeddings.shape[1] != width or len(embeddings) == 0:
        raise UserError(f"embeddings must be (N, {width}) with N at least 1, not {tuple(embeddings.shape)}")
    norms = embeddings.norm(dim=1, keepdim=True)
    bad = ~norms.isfinite() | (norms == 0)
    if bad.any():
        row = int(bad.flatten().nonzero()[0])
        raise UserError(f"embeddings must be finite and not zero, but row {row} has the length {norms[row].item():g}")
    is_unit = (norms - 1).abs() < 1e-4
    return torch.where(is_unit, embeddings, F.normalize(embeddings, dim=1))


def noise_like(noise: Any, example: Tensor) -> Tensor:
    """Noise of the type and on the device of `example`. Raises UserError for another shape, or values not finite."""
    noise = _tensor(noise, "noise")
    if noise.shape != example.shape:
        raise UserError(f"noise must be {tuple(example.shape)}, not {tuple(noise.shape)}")
    noise = (noise if torch.is_grad_enabled() else noise.detach()).to(example)
    if not noise.isfinite().all():
        raise UserError("noise must be finite; it holds NaN or infinity")
    return noise


def device_named(device: Any) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1". Raises UserError if torch does not know it."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"device must be one such as cpu or cuda, not {shown(device)} ({reason(error)})") from None


def _tensor(values: Any, name: str) -> Tensor:
    """A tensor from an array, or from a list of numbers or arrays. Raises UserError for anything else."""
    try:
        if isinstance(values, Tensor):
            return values
        if not isinstance(values, np.ndarray):
            values = list(values)
            if values and all(isinstance(value, Tensor) for value in values):
                return torch.stack(values)
        copy = np.array(values)  # torch refuses negative strides, and warns of arrays that cannot be written to
        return torch.from_numpy(copy.astype(copy.dtype.newbyteorder("=")))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} must be an array of numbers, all of one shape ({reason(error)})") from None
