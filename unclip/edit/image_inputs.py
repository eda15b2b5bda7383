"""Images and masks of any form and size, as a pipeline's decoder takes them.

Images are PIL images, files, or uint8 arrays (H, W), (H, W, C) or (N, H, W, C), of any size, one or a list.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from unclip.errors import UserError, reason
from unclip.images import to_grey_or_rgb
from unclip.pipeline import UnCLIP

OneImage = Image.Image | str | Path | np.ndarray | Tensor
Pictures = OneImage | Sequence[OneImage]


def prepare_images(pipe: UnCLIP, images: Pictures) -> np.ndarray:
    """Images as the decoder was trained on them: uint8 (N, H, W, C) of its size and channels.

    The middle square is taken and resized, transparent parts become white, photographs are turned upright: what
    `data/decoding.py` does. An image that has the decoder's size stays as it is.
    """
    channels, size, _ = pipe.decoder.image_shape
    flat = [to_grey_or_rgb(picture, channels) for picture in _opened(images)]
    fitted = [picture if picture.size == (size, size) else ImageOps.fit(picture, (size, size)) for picture in flat]
    return np.stack([np.array(picture).reshape(size, size, channels) for picture in fitted])


def _opened(images: Pictures) -> list[Image.Image]:
    """Images of any form as upright PIL images of any mode, at least one."""
    several = [image for part in _listed(images) for image in _split(part)]
    if not several:
        raise UserError("the list of images is empty; give at least one")
    return several


def _listed(images: Pictures) -> list[OneImage]:
    return [images] if isinstance(images, (Image.Image, str, Path, np.ndarray, Tensor)) else list(images)


def _split(image: OneImage) -> list[Image.Image]:
    """One image as a list of one, an array (N, H, W, C) as a list of N."""
    if isinstance(image, (str, Path)):
        return [_upright(_read(Path(image)))]
    if isinstance(image, Image.Image):
        return [_upright(image)]
    array = image.cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3, 4) or 0 in array.shape[-3:]:
        raise UserError(f"images must be uint8 (H, W), (H, W, C) or (N, H, W, C), not {array.dtype} {array.shape}")
    if array.ndim == 4:
        return [picture for one in array for picture in _split(one)]
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        raise UserError(f"an image has 1, 3 or 4 channels, in the last place, not {array.shape[-1]}")
    return [Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))]


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"there is no image {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise UserError(f"{path} is not an image that can be read ({reason(error)})") from error


def prepare_mask(pipe: UnCLIP, images: Pictures, mask: OneImage) -> Tensor:
    """Where to paint, bool (N, 1, H, W) of the decoder's size, cut and resized as the images are.

    Args:
        mask: one for all images, or an array (N, H, W) or a list with one for each; of the size of its image or of the
            decoder's. True, or brighter than half of its brightest, is where to paint. A pixel of the decoder that
            holds any such one is painted.
    """
    pictures = _opened(images)
    _, size, _ = pipe.decoder.image_shape
    several = isinstance(mask, (list, tuple)) or getattr(mask, "ndim", 2) == 3
    masks = [_mask_array(one) for one in mask] if several else [_mask_array(mask)] * len(pictures)
    if len(masks) != len(pictures):
        raise UserError(f"{len(masks)} masks do not go with {len(pictures)} images")
    fitted = []
    for one, picture in zip(masks, pictures, strict=True):
        if one.shape[::-1] not in (picture.size, (size, size)):
            sizes = f"{picture.width}x{picture.height} as its image, or {size}x{size} as the decoder"
            raise UserError(f"a mask must be {sizes}, not {one.shape[1]}x{one.shape[0]}")
        side = min(one.shape)
        top, left = (one.shape[0] - side) // 2, (one.shape[1] - side) // 2
        square = torch.from_numpy(one[top : top + side, left : left + side].copy())
        fitted.append(F.adaptive_max_pool2d(square[None].float(), size) > 0)
    return torch.stack(fitted)


def _mask_array(mask: OneImage) -> np.ndarray:
    """A mask of any form as bool (H, W)."""
    if isinstance(mask, (str, Path)):
        mask = _read(Path(mask))
    if isinstance(mask, Image.Image):
        mask = _upright(mask).convert("RGBA")
        mask = np.asarray(Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask).convert("L"))
    mask = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if mask.ndim != 2 or mask.dtype not in (bool, np.uint8) or mask.size == 0:
        raise UserError(f"a mask must be bool or uint8 (H, W), not {mask.dtype} {mask.shape}")
    return mask > mask.max() / 2


def is_single_image(images: Pictures) -> bool:
    """Whether one image was given, and not a list or an array of several."""
    return isinstance(images, (Image.Image, str, Path)) or getattr(images, "ndim", 4) < 4
