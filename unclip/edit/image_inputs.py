"""Bring images and masks of any form and size to the form that a pipeline's decoder takes.

Images are PIL images, files, or uint8 arrays (H, W), (H, W, C) or (N, H, W, C), of any size; one, or a list.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from unclip.errors import UserError, reason
from unclip.images import to_grey_or_rgb
from unclip.pipeline import UnCLIP

OneImage: TypeAlias = Image.Image | str | Path | np.ndarray | Tensor
Pictures: TypeAlias = OneImage | Sequence[OneImage]


def is_single_image(images: Pictures) -> bool:
    """Whether this is one image, and not a list or an array of several."""
    return isinstance(images, (Image.Image, str, Path)) or getattr(images, "ndim", 4) < 4


def prepare_images(pipe: UnCLIP, images: Pictures) -> np.ndarray:
    """Images as the decoder was trained on them, uint8 (N, H, W, C) of its size and channels.

    Orientations are applied, transparent parts become white, and the middle square is cut out and resized, as
    `data/decoding.py` does. An image of the decoder's size keeps its pixels.
    """
    channels, height, width = pipe.decoder.image_shape
    arrays = []
    for picture in open_images(images):
        picture = to_grey_or_rgb(picture, channels)
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height))
        arrays.append(np.array(picture).reshape(height, width, channels))
    return np.stack(arrays)


def open_images(images: Pictures) -> list[Image.Image]:
    """Images of any form as PIL images of any mode, turned upright. Raises UserError if there are none."""
    is_single = isinstance(images, (Image.Image, str, Path, np.ndarray, Tensor))
    sources: list[Any] = [images] if is_single else list(images)  # type: ignore[arg-type]
    pictures = [picture for source in sources for picture in _pictures_of(source)]
    if not pictures:
        raise UserError("the list of images is empty; give at least one")
    return pictures


def _pictures_of(image: OneImage) -> list[Image.Image]:
    """The PIL images of a source: one, or N for an array (N, H, W, C)."""
    if isinstance(image, (str, Path)):
        image = _open_file(Path(image))
    if isinstance(image, Image.Image):
        return [ImageOps.exif_transpose(image)]
    array = image.cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3, 4) or 0 in array.shape[-3:]:
        raise UserError(f"images must be uint8 (H, W), (H, W, C) or (N, H, W, C), not {array.dtype} {array.shape}")
    if array.ndim == 4:
        return [picture for single in array for picture in _pictures_of(single)]
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        raise UserError(f"an image has 1, 3 or 4 channels, in the last place, not {array.shape[-1]}")
    if array.shape[2:] == (1,):
        array = array[..., 0]
    return [Image.fromarray(np.ascontiguousarray(array))]


def _open_file(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"there is no image {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise UserError(f"{path} is not an image that can be read ({reason(error)})") from error


def prepare_mask(pipe: UnCLIP, images: Pictures, mask: OneImage) -> Tensor:
    """Where to paint, bool (N, 1, H, W) of the decoder's size, cut out and resized as the images are.

    Args:
        mask: one mask for all images; or one for each, as a list or an array (N, H, W). It has the size of its image or
            that of the decoder. Paint where it is True, or brighter than half of its maximum. A pixel of the decoder is
            painted if any pixel of the mask within it is.
    """
    _, size, _ = pipe.decoder.image_shape
    pictures = open_images(images)
    is_several = isinstance(mask, (list, tuple)) or getattr(mask, "ndim", 2) == 3
    several: Any = mask
    masks = [_mask_array(single) for single in several] if is_several else [_mask_array(mask)] * len(pictures)
    if len(masks) != len(pictures):
        raise UserError(f"{len(masks)} masks do not go with {len(pictures)} images")
    fitted = []
    for array, picture in zip(masks, pictures, strict=True):
        height, width = array.shape
        if (width, height) not in (picture.size, (size, size)):
            sizes = f"{picture.width}x{picture.height} as its image, or {size}x{size} as the decoder"
            raise UserError(f"a mask must be {sizes}, not {width}x{height}")
        side = min(height, width)
        top = (height - side) // 2
        left = (width - side) // 2
        square = torch.from_numpy(array[top : top + side, left : left + side].copy())
        fitted.append(F.adaptive_max_pool2d(square[None].float(), size) > 0)
    return torch.stack(fitted)


def _mask_array(mask: OneImage) -> np.ndarray:
    """A mask of any form as bool (H, W). Transparent parts of an image count as black."""
    if isinstance(mask, (str, Path)):
        mask = _open_file(Path(mask))
    if isinstance(mask, Image.Image):
        mask = ImageOps.exif_transpose(mask).convert("RGBA")
        mask = np.asarray(Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask).convert("L"))
    mask = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if mask.ndim != 2 or mask.dtype not in (bool, np.uint8) or mask.size == 0:
        raise UserError(f"a mask must be bool or uint8 (H, W), not {mask.dtype} {mask.shape}")
    return mask > mask.max() / 2
