"""Convert images between tensors, arrays, PIL images and files.

Models compute with float images (B, C, H, W) in [-1, 1]; everywhere else pixels are uint8 from 0 to 255.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from unclip.pixels import read_colours
from unclip.store.files import write_atomically


def to_float(images: Tensor) -> Tensor:
    """Map uint8 pixels in 0 .. 255 to float in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Map float in [-1, 1] to uint8 pixels in 0 .. 255, clamped and rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_pil(image: Image.Image, channels: int) -> Tensor:
    """Convert a PIL image of any mode to uint8 (channels, H, W), see `unclip.pixels.read_colours`."""
    pixels = np.array(read_colours(image, channels))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def to_pil(image: np.ndarray, height: int | None = None) -> Image.Image:
    """Convert uint8 (H, W, 1 or 3) to a PIL image.

    With `height`, enlarge it to about that many pixels. The factor is a whole number, so that pixels stay square.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    factor = max(1, round(height / image.shape[0])) if height else 1
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def png_bytes(picture: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """Encode a picture as a PNG, with text beside the pixels: see `unclip.picture_text`."""
    info = PngInfo()
    for name, value in (text or {}).items():
        info.add_itxt(name, value.replace("\0", " ").encode(errors="backslashreplace").decode())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(path: Path, picture: Image.Image, durable: bool = True, text: Mapping[str, str] | None = None) -> None:
    """Write a PNG file with text. `durable` is explained at `unclip.store.files.write_atomically`."""
    write_atomically(path, png_bytes(picture, text), durable)
