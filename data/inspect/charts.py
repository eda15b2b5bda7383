"""Pictures of a data set, drawn with Pillow alone: a contact sheet, and bars of counts."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from unclip.fonts import label_font
from unclip.grids import INK, PAPER, wrap_text
from unclip.images import to_pil

GAP = 8
"""Pixels between things."""
TEXT_SIZE = 12
LINE = 15
"""Pixels from one line of text to the next."""
BAR = 260
"""Pixels of the longest bar."""
BAR_COLOUR = (70, 110, 170)


def draw_contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Draw images uint8 (H, W, 1 or 3) of one size in several columns, each over its caption."""
    pictures = [to_pil(image, 112) for image in images]
    width, height = pictures[0].size
    width = max(width, 112)
    fonts = [label_font(caption, TEXT_SIZE) for caption in captions]
    texts = [wrap_text(caption, width, font) for caption, font in zip(captions, fonts, strict=True)]
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    heights = [height + LINE * max(len(texts[i]) for i in row) + 2 * GAP for row in rows]
    sheet = Image.new("RGB", (min(columns, len(pictures)) * (width + GAP) + GAP, sum(heights) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, row_height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (width + GAP)
            sheet.paste(pictures[i], (left, top))
            for number, line in enumerate(texts[i]):
                draw.text((left, top + height + 3 + number * LINE), line, fill=INK, font=fonts[i])
        top += row_height
    return sheet


def draw_bars(title: str, counts: Sequence[tuple[str, int]]) -> Image.Image:
    """Draw a bar for each count, with its label on the left and the number on the right."""
    font = label_font(title, TEXT_SIZE)
    fonts = [label_font(label, TEXT_SIZE) for label, _ in counts]
    labels = [(wrap_text(label, 150, face) or [""])[0] for (label, _), face in zip(counts, fonts, strict=True)]
    left = GAP + max(face.getlength(label) for label, face in zip(labels, fonts, strict=True)) + GAP
    width = int(max(left + BAR + 70, font.getlength(title) + 2 * GAP))
    picture = Image.new("RGB", (width, (len(counts) + 2) * (LINE + 3) + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    largest = max(count for _, count in counts)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for row, (label, (_, count)) in enumerate(zip(labels, counts, strict=True)):
        top = GAP + (row + 1.5) * (LINE + 3)
        draw.text((left - GAP, top), label, fill=INK, font=fonts[row], anchor="ra")
        draw.rectangle((left, top, left + BAR * count / largest, top + LINE - 2), fill=BAR_COLOUR)
        draw.text((left + BAR * count / largest + GAP, top), str(count), fill=INK, font=font)
    return picture


def join_pictures(pictures: Sequence[Image.Image]) -> Image.Image:
    """Place pictures side by side."""
    sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), PAPER)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet


def bin_counts(values: Sequence[int], bins: int = 12) -> list[tuple[str, int]]:
    """Count whole numbers in at most `bins` intervals of one width, from the least number to the greatest."""
    low = min(values)
    high = max(values)
    width = -(-(high - low + 1) // bins)
    counts = np.bincount((np.asarray(values) - low) // width)
    starts = range(low, low + len(counts) * width, width)
    labels = [f"{start} - {start + width - 1}" if width > 1 else str(start) for start in starts]
    return list(zip(labels, counts.tolist(), strict=True))
