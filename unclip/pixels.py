"""Read a picture of any form as the pixels that a pipeline's data were read as: one function for all who need them.

Training, `UnCLIP.encode_image`, edits, masks and the page see the same picture in the same way. Needs no torch.
"""

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageCms

from unclip.errors import UserError, shown
from unclip.fitting import Fit, place_in_square
from unclip.image_opening import DARKEST, explain_unreadable, load_image, open_image

OneImage: TypeAlias = Image.Image | str | Path | Any
"""A file, a PIL image, or an array or tensor uint8 (H, W) or (H, W, 1, 3 or 4)."""
Pictures: TypeAlias = OneImage | Sequence[OneImage]
"""One picture, a list of them, or an array or tensor uint8 (N, H, W, C)."""

ARRAYS = "images must be uint8 (H, W), (H, W, C) or (N, H, W, C), with 1, 3 or 4 channels C"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image becomes upright, by the orientation that the camera recorded."""
PLAIN_MODES = {"LAB": "RGB", "La": "LA", "RGBa": "RGBA"}
"""Modes that Pillow converts to few others, and the mode that stands in for each."""
VISIBLE = 2
"""Grey levels. A colour profile that changes no colour by more is taken for sRGB, and the pixels stay as they are."""


def read_pictures(pictures: Pictures, size: int, channels: int, fit: Fit) -> np.ndarray:
    """Read pictures of any form: uint8 (N, size, size, channels). An array of this shape keeps its pixels."""
    if getattr(pictures, "ndim", 0) == 4:
        array = _as_array(pictures)
        if array.shape[1:] == (size, size, channels) and array.dtype == np.uint8 and len(array):
            return array.copy()
    return np.stack([_fit_to_square(image, size, fit) for image in open_pictures(pictures, channels)])


def read_pixels(picture: Image.Image, size: int, channels: int, fit: Fit) -> np.ndarray:
    """Read a PIL image: uint8 (size, size, channels). One of this size keeps its pixels.

    Raises UserError for pixels whose range is unknown, and what Pillow raises for a broken image.
    """
    return _fit_to_square(read_colours(picture, channels), size, fit)


def _fit_to_square(image: Image.Image, size: int, fit: Fit) -> np.ndarray:
    """A grey or RGB image, fitted and resized by Pillow's bicubic filter: uint8 (size, size, C)."""
    if image.size != (size, size):
        box, part_size, corner = place_in_square(*image.size, size, fit)
        part = image.resize(part_size, Image.Resampling.BICUBIC, box)
        image = Image.new(part.mode, (size, size), "white")
        image.paste(part, corner)
    return np.array(image).reshape(size, size, -1)


def read_colours(picture: Image.Image, channels: int) -> Image.Image:
    """Convert a PIL image of any mode to grey (1 channel) or RGB (3 channels), turned upright.

    Colours are converted to sRGB by the image's profile, transparent parts are put on white, and of 16 bits the upper 8
    are kept. Raises UserError for pixels whose range is unknown, and what Pillow raises for a broken image.
    """
    image = to_8_bits(load_upright(picture))
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        opaque = to_srgb(whole.convert("L" if image.mode == "LA" else "RGB")).convert("RGBA")
        opaque.putalpha(whole.getchannel("A"))
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque)
    else:
        image = to_srgb(image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def load_upright(picture: Image.Image) -> Image.Image:
    """Read a PIL image to its end, and turn it by the orientation that the camera recorded, if that can be read.

    Its mode is one that Pillow converts to all others (see `PLAIN_MODES`).
    """
    image = load_image(picture)
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many kinds for broken EXIF
        turn = None
    if turn is not None:
        image = image.transpose(turn)
        image.info = {key: value for key, value in image.info.items() if key in ("icc_profile", "transparency")}
    return image.convert(PLAIN_MODES[image.mode]) if image.mode in PLAIN_MODES else image


def to_8_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 of 16 bits, which may be stored in 32. Raises UserError for pixels of another range."""
    if image.mode == "F":
        raise UserError("an image of floating-point pixels has no known range; save it with 8 or 16 bits a channel")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    low = int(pixels.min())
    high = int(pixels.max())
    if low < 0 or high > 65535:
        raise UserError(f"its pixels have 32 bits and lie in {low} .. {high}; scale them to 0 .. 65535")
    if 0 < high < DARKEST:
        raise UserError(f"its pixels have 16 bits but reach only {high}; scale them to 0 .. 65535")
    reduced = Image.fromarray((pixels // 256).astype(np.uint8))
    if "transparency" in image.info:
        reduced.putalpha(Image.fromarray((pixels != image.info["transparency"]).astype(np.uint8) * np.uint8(255)))
    if "icc_profile" in image.info:
        reduced.info["icc_profile"] = image.info["icc_profile"]
    return reduced


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert the colours of an opaque image to sRGB by its colour profile, if it has one that can be used."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    image = image.convert("RGB") if image.mode == "P" else image
    transform = _transform_to_srgb(bytes(profile), image.mode)
    return image if transform is None else transform.apply(image)


@lru_cache(maxsize=8)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of pixels of a mode from a profile to RGB.

    None where there is nothing to convert: the profile is broken, is for pixels of another kind, or is that of sRGB.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    levels = [np.linspace(0, 255, 9).astype(np.uint8)] * Image.getmodebands(mode)
    colours = np.stack(np.meshgrid(*levels), axis=-1)
    probe = Image.frombytes(mode, (colours.size // len(levels), 1), colours.tobytes())
    change = np.asarray(transform.apply(probe), int) - np.asarray(probe.convert("RGB"), int)
    return transform if np.abs(change).max() > VISIBLE else None


def open_pictures(pictures: Pictures, channels: int) -> list[Image.Image]:
    """Pictures of any form as PIL images in grey or RGB (see `read_colours`).

    Raises UserError if there are none, or if one cannot be read.
    """
    is_single = isinstance(pictures, (Image.Image, str, Path)) or hasattr(pictures, "ndim")
    if not is_single and not isinstance(pictures, Iterable):
        raise UserError(f"images must be files, PIL images or uint8 arrays, not {shown(pictures)}")
    sources: Any = [pictures] if is_single else pictures
    opened = [_open_picture(single, channels) for source in sources for single in _take_apart(source)]
    if not opened:
        raise UserError("the list of images is empty; give at least one")
    return opened


def _take_apart(picture: OneImage) -> Iterable[OneImage]:
    """The pictures of an array (N, H, W, C) as PIL images; any other picture alone."""
    if isinstance(picture, (str, Path, Image.Image)):
        return [picture]
    array = _as_array(picture)
    is_image = array.ndim == 2 or (array.ndim in (3, 4) and array.shape[-1] in (1, 3, 4))
    if array.dtype != np.uint8 or not is_image or 0 in array.shape[-3:]:
        raise UserError(f"{ARRAYS}, not {array.dtype} {array.shape}")
    if array.ndim == 4:
        return [image for single in array for image in _take_apart(single)]
    return [Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))]


def _open_picture(picture: Image.Image | str | Path, channels: int) -> Image.Image:
    try:
        image = picture if isinstance(picture, Image.Image) else open_image(Path(picture))
        return read_colours(image, channels)
    except FileNotFoundError:
        raise UserError(f"there is no image {picture}") from None
    except Exception as error:  # Pillow raises many kinds for broken files
        name = "a PIL image" if isinstance(picture, Image.Image) else picture
        raise UserError(f"{name} {explain_unreadable(error)}") from error


def _as_array(array: Any) -> np.ndarray:
    try:
        return np.asarray(array.cpu() if hasattr(array, "cpu") else array)
    except (TypeError, ValueError, RuntimeError):  # lists of unequal lengths, tensors that numpy has no type for
        raise UserError(f"{ARRAYS}, not {shown(array)}") from None
