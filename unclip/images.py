"""Pixels in and out: conversions, captioned grids, animations.

Inside the models images are float (B, C, H, W) in [-1, 1]; outside they are uint8.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from unclip.errors import UserError
from unclip.store.files import write_atomically

INK, PAPER = (20, 20, 20), (255, 255, 255)


def to_float(images: Tensor) -> Tensor:
    """uint8 0 .. 255 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8 0 .. 255, rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def upright(image: Image.Image, channels: int) -> Image.Image:
    """A PIL image of any mode as a grey or an RGB one.

    What is transparent is put on white, the orientation that a camera noted is applied, and of 16 bits the upper 8 are
    kept. Raises UserError for pixels of unlimited range.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, or 32 that hold them
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    elif image.mode == "F":
        raise UserError("an image of floating-point pixels has no known range; save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def from_pil(image: Image.Image, channels: int) -> Tensor:
    """A PIL image of any mode -> uint8 (channels, H, W), by `upright`."""
    pixels = np.array(upright(image, channels))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def to_pil(image: np.ndarray, height: int | None = None) -> Image.Image:
    """uint8 (H, W, 1 or 3) -> PIL, enlarged to about `height` pixels by a whole factor, so that pixels stay square."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    factor = max(1, round(height / image.shape[0])) if height else 1
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def save_png(path: Path, picture: Image.Image, durable: bool = True) -> None:
    """`durable` as for `unclip.store.files.write_atomically`."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue(), durable)


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break text into lines of at most `width` pixels, at spaces where there are any; at most four lines."""
    lines, line = [], ""
    for word in text[:1000].split():  # more than four lines hold
        while font.getlength(word) > width:  # a word that is too long by itself is broken anywhere
            cut = next((i for i in range(1, len(word)) if font.getlength(word[: i + 1]) > width), 1)
            lines, line, word = [*lines, line] if line else lines, word[:cut], word[cut:]
            lines, line = [*lines, line], ""
        if line and font.getlength(f"{line} {word}") > width:
            lines, line = [*lines, line], word
        else:
            line = f"{line} {word}".strip()
    lines = [*lines, line] if line else lines
    return [*lines[:3], lines[3].rstrip() + " ..."] if len(lines) > 4 else lines


def captioned_grid(
    rows: Sequence[tuple[str, np.ndarray]],
    cell: int = 84,
    margin: int = 200,
    columns: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Image.Image:
    """One row per caption: the caption on the left, then its images uint8 (n, H, W, C), enlarged.

    `columns` are headings, each over an equal share of the images; `notes` stand beneath the captions, one line each.
    """
    font = ImageFont.load_default(15)
    cells = [[to_pil(image, cell) for image in images] for _, images in rows]
    width, height = cells[0][0].size
    gap, row_height = 4, max(height, 84) + 4
    across, head = max(map(len, cells)), 24 if columns else 0
    sheet = Image.new("RGB", (margin + across * (width + gap) + gap, head + len(rows) * row_height + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for c, heading in enumerate(columns):
        draw.text((margin + c * across // len(columns) * (width + gap), gap), heading, fill=INK, font=font)
    for r, ((caption, _), pictures) in enumerate(zip(rows, cells, strict=True)):
        top = head + gap + r * row_height
        lines = wrap(caption, margin - 16, font)
        lines = [*lines[:3], notes[r]] if notes else lines
        y = top + (row_height - gap - 19 * len(lines)) // 2
        for i, line in enumerate(lines):
            draw.text((8, y + 19 * i), line, fill=INK, font=font)
        for c, picture in enumerate(pictures):
            sheet.paste(picture, (margin + c * (width + gap), top))
    return sheet


def gif_bytes(frames: Sequence[Image.Image], milliseconds: int = 250) -> bytes:
    """An endless animation that rests on its last frame, as a GIF file."""
    durations = [milliseconds] * (len(frames) - 1) + [1500]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
    return buffer.getvalue()


def save_gif(path: Path, frames: Sequence[Image.Image], milliseconds: int = 250) -> None:
    """`gif_bytes`, written to a file."""
    write_atomically(path, gif_bytes(frames, milliseconds))
