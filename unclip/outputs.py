"""The output of a call, and the ways to look at it and to keep it: PIL images, a grid, a notebook's cell, files."""

import base64
import html
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from unclip.errors import quantity
from unclip.grids import captioned_grid
from unclip.images import png_bytes, save_png, to_pil
from unclip.picture_text import describe_picture, picture_name
from unclip.settings import Sampling

MOST_ROWS = 64
"""Rows of a grid, at most."""


@dataclass(repr=False)
class Output:
    """The result of a call: N images, the n images of each caption in a row."""

    images: np.ndarray
    """uint8 (N, H, W, C)."""
    captions: list[str]
    """N captions."""
    seeds: list[int]
    """N seeds; sample i of a caption has seed + i."""
    embeddings: Tensor
    """Image embeddings that the prior drew, unit norm, (N, D)."""
    noise: Tensor
    """The noise that the decoder started from, (N, C, H, W). `UnCLIP.decode` takes it and draws the same images again,
    unless the sampler adds noise and another candidate than the first was kept, which was drawn with another seed."""
    sampling: Sampling = field(default_factory=Sampling)
    """The settings that the images were drawn with."""
    origin: dict[str, Any] = field(default_factory=dict)
    """The pipeline that drew them: see `UnCLIP.origin`."""

    @property
    def pil(self) -> list[Image.Image]:
        """The images as PIL images of their own size."""
        return [to_pil(image) for image in self.images]

    def grid(self, columns: int = 8) -> Image.Image:
        """Draw the images enlarged, up to `columns` in a row, beside their captions; at most 64 rows."""
        rows: list[tuple[str, np.ndarray]] = []
        for caption, group in groupby(range(len(self.images)), key=lambda i: self.captions[i]):
            numbers = list(group)
            starts = range(0, len(numbers), max(1, columns))
            rows += [("" if i else caption, self.images[numbers[i : i + max(1, columns)]]) for i in starts]
        return captioned_grid(rows[:MOST_ROWS])

    def save(self, folder: str | Path) -> list[Path]:
        """Write a PNG of each image, such as 000-a-bag-seed0.png, and grid.png. Returns the paths of the images.

        Each PNG holds its caption, seed, settings and pipeline as text: `PIL.Image.open(path).text`.
        Raises UserError if the folder is a file.
        """
        folder = Path(folder)
        paths = []
        for i, (picture, caption, seed) in enumerate(zip(self.pil, self.captions, self.seeds, strict=True)):
            paths.append(folder / picture_name(i, caption, seed))
            save_png(paths[-1], picture, durable=False, text=self._text([caption], [seed]))  # easily drawn again
        save_png(folder / "grid.png", self.grid(), durable=False, text=self._text(self.captions, self.seeds))
        return paths

    def _text(self, captions: list[str], seeds: list[int]) -> dict[str, str]:
        return describe_picture(self, captions, seeds, self.sampling)

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        captions = quantity(len(set(self.captions)), "caption")
        sizes = f"{quantity(len(self.images), 'image')} of {height}x{width}x{channels}"
        return f"<Output: {sizes}, {captions}, seeds {min(self.seeds)} to {max(self.seeds)}>"

    def _repr_png_(self) -> bytes:
        """The grid, as notebooks show it."""
        return png_bytes(self.grid())

    def _repr_html_(self) -> str:
        """The same for pages, with the captions in words for those who do not see it."""
        captions = html.escape(", ".join(dict.fromkeys(self.captions)), quote=True)
        picture = base64.b64encode(self._repr_png_()).decode()
        return f'<img alt="{captions}" src="data:image/png;base64,{picture}">'
