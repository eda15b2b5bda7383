"""Draw grids of captioned images, and animations."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from unclip.fonts import Font, label_font
from unclip.images import to_pil
from unclip.store.files import write_atomically

INK = (20, 20, 20)
PAPER = (255, 255, 255)
"""Colours of text and background."""
GAP = 4
"""Pixels between cells."""
TEXT_SIZE = 15
LINE_HEIGHT = 19
"""Pixels from one line of a caption to the next."""


def captioned_grid(
    rows: Sequence[tuple[str, np.ndarray]],
    cell: int = 84,
    margin: int = 200,
    columns: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Image.Image:
    """Draw one row per caption: the caption on the left, then its images uint8 (n, H, W, C).

    Args:
        cell: height in pixels that images are enlarged to, roughly.
        margin: width of the captions' column in pixels.
        columns: headings, each over an equal share of the images.
        notes: one line for each caption, drawn beneath it.
    """
    cells = [[to_pil(image, cell) for image in images] for _, images in rows]
    width, height = cells[0][0].size
    row_height = max(height, 84) + GAP
    heading_height = 24 if columns else 0
    longest_row = max(map(len, cells))
    sheet_size = (margin + longest_row * (width + GAP) + GAP, heading_height + len(rows) * row_height + GAP)
    sheet = Image.new("RGB", sheet_size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for c, heading in enumerate(columns):
        left = margin + c * longest_row // len(columns) * (width + GAP)
        draw.text((left, GAP), heading, fill=INK, font=label_font(heading, TEXT_SIZE))
    for r, ((caption, _), pictures) in enumerate(zip(rows, cells, strict=True)):
        top = heading_height + GAP + r * row_height
        font = label_font(caption + (notes[r] if notes else ""), TEXT_SIZE)
        lines = wrap_text(caption, margin - 16, font)
        if notes:
            lines = [*lines[:3], notes[r]]
        text_top = top + (row_height - GAP - LINE_HEIGHT * len(lines)) // 2
        for i, line in enumerate(lines):
            draw.text((8, text_top + LINE_HEIGHT * i), line, fill=INK, font=font)
        for c, picture in enumerate(pictures):
            sheet.paste(picture, (margin + c * (width + GAP), top))
    return sheet


def wrap_text(text: str, width: int, font: Font) -> list[str]:
    """Break text into at most four lines of at most `width` pixels, at spaces where possible."""
    lines = []
    line = ""
    for word in text[:1000].split():  # more than four lines hold
        while font.getlength(word) > width:  # a word that is wider than a line is broken anywhere
            if line:
                lines.append(line)
                line = ""
            cut = next((i for i in range(1, len(word)) if font.getlength(word[: i + 1]) > width), 1)
            lines.append(word[:cut])
            word = word[cut:]
        if line and font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    if line:
        lines.append(line)
    return [*lines[:3], lines[3].rstrip() + " ..."] if len(lines) > 4 else lines


def gif_bytes(frames: Sequence[Image.Image], milliseconds: int = 250) -> bytes:
    """Encode frames as an endless GIF animation that rests on its last frame."""
    durations = [milliseconds] * (len(frames) - 1) + [1500]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
    return buffer.getvalue()


def save_gif(path: Path, frames: Sequence[Image.Image], milliseconds: int = 250) -> None:
    """Write frames as a GIF animation."""
    write_atomically(path, gif_bytes(frames, milliseconds))
