"""Bring images and masks of any form and size to the form that a pipeline's decoder takes.

Images are PIL images, files, or uint8 arrays (H, W), (H, W, C) or (N, H, W, C), of any size; one, or a list.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.errors import UserError, quantity
from unclip.fitting import Fit, place_in_square
from unclip.image_opening import explain_unreadable, open_image
from unclip.pipeline import UnCLIP
from unclip.pixels import OneImage, Pictures, load_upright, open_pictures


def is_single_image(images: Pictures) -> bool:
    """Whether this is one image, and not a list or an array of several."""
    return isinstance(images, (Image.Image, str, Path)) or getattr(images, "ndim", 4) < 4


def prepare_images(pipe: UnCLIP, images: Pictures) -> np.ndarray:
    """Images as the decoder was trained on them, uint8 (N, H, W, C) of its size and channels."""
    return pipe.read_images(images)


def prepare_mask(pipe: UnCLIP, images: Pictures, mask: OneImage) -> Tensor:
    """Where to paint, bool (N, 1, H, W) of the decoder's size, fitted as the images are.

    Args:
        mask: one mask for all images; or one for each, as a list or an array (N, H, W). It has the size of its image or
            that of the decoder. Paint where it is True, or brighter than half of its maximum; or, in an image with
            transparent parts, where it is transparent. A pixel of the decoder is painted if any pixel of the mask
            within it is.
    """
    channels, size, _ = pipe.decoder.image_shape
    pictures = open_pictures(images, channels)
    is_several = isinstance(mask, (list, tuple)) or getattr(mask, "ndim", 2) == 3
    several: Any = mask
    masks = [_mask_array(single) for single in several] if is_several else [_mask_array(mask)] * len(pictures)
    if len(masks) != len(pictures):
        counts = f"{quantity(len(masks), 'mask')} cannot go with {quantity(len(pictures), 'image')}"
        raise UserError(f"{counts}; one mask is (H, W), and several are (N, H, W)")
    fitted = []
    for array, picture in zip(masks, pictures, strict=True):
        height, width = array.shape
        if (width, height) not in (picture.size, (size, size)):
            sizes = f"{picture.width}x{picture.height} as its image, or {size}x{size} as the decoder"
            raise UserError(f"a mask must be {sizes}, not {width}x{height}")
        fitted.append(torch.from_numpy(_fit_mask(array, size, pipe.fit)))
    return torch.stack(fitted)[:, None]


def _fit_mask(mask: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """A mask bool (H, W) -> bool (size, size), True wherever a pixel holds a True one, if only in part."""
    (left, top, right, bottom), (width, height), (x, y) = place_in_square(mask.shape[1], mask.shape[0], size, fit)
    square = np.zeros((size, size), bool)
    square[y : y + height, x : x + width] = _any_within(_any_within(mask, top, bottom, height).T, left, right, width).T
    return square


def _any_within(mask: np.ndarray, start: float, end: float, parts: int) -> np.ndarray:
    """Bool (H, W) -> (parts, W): whether any row is True in each of equal parts of the rows from `start` to `end`."""
    edges = start + np.arange(parts + 1) * (end - start) / parts
    counts = np.concatenate([np.zeros((1, mask.shape[1]), int), np.cumsum(mask, axis=0)])
    return counts[np.ceil(edges[1:]).astype(int)] > counts[np.floor(edges[:-1]).astype(int)]


def _mask_array(mask: OneImage) -> np.ndarray:
    """A mask of any form as bool (H, W)."""
    if isinstance(mask, (str, Path, Image.Image)):
        return _read_mask(mask)
    mask = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if mask.ndim != 2 or mask.dtype not in (bool, np.uint8) or mask.size == 0:
        raise UserError(f"a mask must be bool or uint8 (H, W), not {mask.dtype} {mask.shape}")
    return mask > mask.max() / 2


def _read_mask(mask: Image.Image | str | Path) -> np.ndarray:
    """A mask in a file or a PIL image as bool (H, W)."""
    name = "the mask" if isinstance(mask, Image.Image) else f"the mask {mask}"
    try:
        image = load_upright(mask if isinstance(mask, Image.Image) else open_image(Path(mask)))
        if image.has_transparency_data:
            image = image.convert("RGBA")
    except FileNotFoundError:
        raise UserError(f"there is no mask {mask}") from None
    except Exception as error:  # Pillow raises many kinds for broken files
        raise UserError(f"{name} {explain_unreadable(error)}") from error
    if image.mode == "RGBA":
        is_transparent = np.asarray(image.getchannel("A")) < 128
        if is_transparent.any():
            warnings.warn(
                f"the mask is transparent in {is_transparent.mean():.0%} of its pixels: that part is painted, the "
                "rest stays; a mask that is white where to paint must have no transparent parts",
                stacklevel=5,
            )
            return is_transparent
        image = image.convert("RGB")
    brightness = np.asarray(image if image.mode[0] in "IF" else image.convert("L"))
    return brightness > brightness.max() / 2
