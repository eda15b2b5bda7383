"""Emoji in colour with their Unicode names: an open vocabulary, in 3,655 images.

The pictures are the bitmaps of the Noto colour emoji font, the names those of Unicode's emoji-test.txt. Both are taken
from the first of: the folder that is given, an earlier download, Debian's installed packages `fonts-noto-color-emoji`
and `unicode-data`, the same packages downloaded and unpacked, which needs no root.
"""

import re
import shutil
import tempfile
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from data import debian, paths
from data.problems import Problems
from data.records import Listing, Record
from unclip.errors import UserError, reason

RAW = paths.RAW / "emoji"
FONT, NAMES = "NotoColorEmoji.ttf", "emoji-test.txt"
SOURCES = {
    FONT: ("fonts-noto-color-emoji", Path("usr/share/fonts/truetype/noto") / FONT),
    NAMES: ("unicode-data", Path("usr/share/unicode/emoji") / NAMES),
}
BITMAP = 109
"""The one size, in pixels, that the font's bitmaps are made for."""
LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[0-9.]+ (?P<name>.+)")

EVERY = 20
HELD_OUT = (
    "cat with tears of joy", "kissing cat", "pouting cat", "see-no-evil monkey", "dog face", "green circle",
    "purple square", "blue heart", "orange book", "white flag", "woman astronaut", "man firefighter", "woman cook",
    "woman running", "man dancing", "woman with white cane", "family: man, man, girl", "seven-thirty", "keycap: 7",
)  # fmt: skip
"""Combinations of what other emoji show one by one: only in the test split."""


def read(root: Path | None, skin_tones: bool, problems: Problems) -> Listing:
    """The records: every fully qualified emoji, with `skin_tones` also those of each tone.

    Every twentieth serves for validation too: the question is whether what was shown can be drawn. Whether what was not
    shown can be is that of the test split.

    Raises UserError if the files are found nowhere.
    """
    font_path, names_path = find(root)
    engine = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
    font = ImageFont.truetype(str(font_path), BITMAP, layout_engine=engine)
    one = font.getlength("\N{GRINNING FACE}")
    records = []
    for line in names_path.read_text(encoding="utf-8").splitlines():
        if not (match := LINE.match(line)) or ("skin tone" in match["name"] and not skin_tones):
            continue
        text, name = "".join(chr(int(code, 16)) for code in match["codes"].split()), match["name"]
        if font.getlength(text) > 1.5 * one:  # a sequence that the font draws as its parts
            problems.add(name, "is not one picture in this font")
        else:
            record = Record(name, partial(_draw, text, font), (name,), split="test" if name in HELD_OUT else "train")
            records.append(record)
            if len(records) % EVERY == 0 and record.split == "train":
                records.append(record._replace(split="validation"))
    return Listing(records, size=32)


def _draw(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji on a transparent square, in its middle."""
    left, top, right, bottom = font.getbbox(text)
    side = max(right - left, bottom - top)
    picture = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    at = ((side - right - left) // 2, (side - bottom - top) // 2)
    ImageDraw.Draw(picture).text(at, text, font=font, embedded_color=True)
    return picture


def find(root: Path | None = None) -> tuple[Path, Path]:
    """The font and the list of names; downloads them if need be. Raises UserError if every source fails."""
    if root is not None:
        found = [next(iter(sorted(root.rglob(name))), None) for name in SOURCES]
        if missing := [name for name, path in zip(SOURCES, found, strict=True) if path is None]:
            raise UserError(f"--data.root {root} holds no {missing[0]}; expected {FONT} and {NAMES}")
        return tuple(found)
    return tuple(_find_one(name) for name in SOURCES)


def _find_one(name: str) -> Path:
    package, inside = SOURCES[name]
    for path in (RAW / name, Path("/") / inside):
        if path.is_file():
            return path
    RAW.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RAW.parent) as temporary:
        try:
            debian.unpack(package, Path(temporary))
            shutil.move(Path(temporary) / inside, RAW / name)
        except Exception as error:  # whatever a download may raise
            raise UserError(
                f"{name} could not be fetched ({reason(error)}); install Debian's package {package}, or name a folder "
                "that holds it with --data.root"
            ) from error
    return RAW / name
