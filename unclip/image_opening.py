"""Open image files so that broken or overlong side information does not cost good pixels."""

import io
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from unclip.errors import UserError, reason

PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG file."""
TRANSPARENT_COLOUR = {b"\0": 2, b"\2": 6}
"""Bytes of the transparent colour in a PNG of grey or RGB, by the header's byte for the kind of colours."""
LARGEST_PROFILE = 2**24
"""Bytes of a colour profile that are unpacked; Pillow alone stops at 1 MB."""
DARKEST = 4096
"""Pixels of 16 bits that stay below this have 12 bits or fewer, and would be read as black."""


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open a file as `PIL.Image.open` does; a PNG that fails by its side information is opened without it."""
    try:
        return Image.open(file)
    except (UnidentifiedImageError, ValueError):
        content = file.read_bytes() if isinstance(file, Path) else _read_from_start(file)
        if not content.startswith(PNG):
            raise
        return _open_bare_png(content)


def load_image(image: Image.Image) -> Image.Image:
    """Read an opened image to its end; a PNG that fails by its side information is read without it.

    Raises what Pillow raises for broken pixels, and UserError for pixels of more than 8 bits whose range is unknown.
    """
    has_16_bits = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    try:
        image.load()
    except Exception:  # Pillow raises many kinds
        stream = getattr(image, "fp", None)
        content = b"" if stream is None or stream.closed else _read_from_start(stream)
        if not content.startswith(PNG):
            raise
        image = _open_bare_png(content)
        image.load()
    if has_16_bits and not image.mode.startswith("I"):  # Pillow keeps the upper 8 bits of colours
        brightest = int(np.asarray(image.convert("RGB")).max())
        if 256 * brightest < DARKEST:
            raise UserError(f"its pixels have 16 bits but reach less than {DARKEST}; scale them to 0 .. 65535")
    return image


def explain_unreadable(error: Exception) -> str:
    """Why an image cannot be used, from the exception that opening or loading it raised."""
    if isinstance(error, UnidentifiedImageError):  # its message is an object's address, or the path again
        return "cannot be read as an image (it is in no format that Pillow knows)"
    if isinstance(error, Image.DecompressionBombError):
        return "has more pixels than are safe to decode; scale it down"
    return f"cannot be read as an image ({reason(error)})"


def _read_from_start(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read()


def _open_bare_png(content: bytes) -> Image.Image:
    """Open a PNG with no more than its pixels, transparency, orientation and colour profile."""
    kept = [PNG]
    profile = b""
    shortest = {b"eXIf": 0, b"tRNS": TRANSPARENT_COLOUR.get(content[25:26], 0)}  # bytes
    start = len(PNG)
    while start < len(content):
        length = int.from_bytes(content[start : start + 4])
        chunk = content[start : start + 12 + length]  # length, name, data, checksum
        name = chunk[4:8]
        is_sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if name == b"iCCP" and is_sound:
            profile = _unpack_profile(chunk[8:-4])
        elif name[:1].isupper() or (name in shortest and is_sound and length >= shortest[name]):  # upper case: pixels
            kept.append(chunk)
        start += 12 + length
    image = Image.open(io.BytesIO(b"".join(kept)))
    if profile:
        image.info["icc_profile"] = profile
    return image


def _unpack_profile(data: bytes) -> bytes:
    """The colour profile of an iCCP chunk: after a name that ends in 0, and a byte for the method. Empty if broken."""
    try:
        return zlib.decompressobj().decompress(data.partition(b"\0")[2][1:], LARGEST_PROFILE)
    except zlib.error:
        return b""
