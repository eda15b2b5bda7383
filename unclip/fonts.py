"""A font for each label: Pillow's own for ASCII, and for other letters the first font at hand that has them all."""

import functools
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def label_font(text: str, size: int) -> Font:
    """A font in which a label can be drawn. Where none has all letters, a warning says so, and they become boxes."""
    letters = frozenset(letter for letter in text if not letter.isascii() and letter.isprintable())
    if not letters:
        return ImageFont.load_default(size)
    if importlib.util.find_spec("matplotlib") is None:
        warnings.warn(
            "letters beyond ASCII are drawn as boxes: finding a font needs matplotlib: pip install 'unclip[train]'",
            stacklevel=2,
        )
        return ImageFont.load_default(size)
    return ImageFont.truetype(find_font(letters), size)


@functools.lru_cache(1024)
def find_font(letters: frozenset[str]) -> Path:
    """The first font that has all the letters; the first of all, with a warning, if there is none."""
    codes = {ord(letter) for letter in letters}
    for path in scalable_fonts():
        if codes <= read_codes(path):
            return path
    warnings.warn(
        "no font on this machine has all letters of a label: some are drawn as boxes; install one that has them, such "
        "as a Noto font of that script",
        stacklevel=2,
    )
    return next(scalable_fonts())


def scalable_fonts() -> Iterator[Path]:
    """Matplotlib's font, which knows most alphabets, then those of the system, by name."""
    import matplotlib

    yield Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"

    from matplotlib.font_manager import findSystemFonts  # lists all fonts when it is first imported

    yield from map(Path, sorted(findSystemFonts()))


@functools.lru_cache(64)
def read_codes(path: Path) -> frozenset[int]:
    """The code points of a font's letters; none for a font that has no outlines, or cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()
