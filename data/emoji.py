"""Emoji in colour with their Unicode names: an open vocabulary, in 3,655 images.

The pictures are the bitmaps of the Noto colour emoji font, the names those of Unicode's emoji-test.txt. Both are taken
from the first of these that holds them: the folder given as --data.root, an earlier download, Debian's installed
packages `fonts-noto-color-emoji` and `unicode-data`, the same packages downloaded and unpacked, which needs no root.
"""

import re
import shutil
import tempfile
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from data import paths
from data.debian import unpack_package
from data.problems import Problems
from data.records import Listing, Record
from data.source_config import SourceConfig
from unclip.errors import UserError, reason

RAW = paths.RAW / "emoji"
FONT = "NotoColorEmoji.ttf"
NAMES = "emoji-test.txt"
PACKAGES = {
    FONT: ("fonts-noto-color-emoji", Path("usr/share/fonts/truetype/noto") / FONT),
    NAMES: ("unicode-data", Path("usr/share/unicode/emoji") / NAMES),
}
"""The Debian package of each file, and the file's path in it."""
BITMAP = 109
"""The one size, in pixels, that the font's bitmaps are made for."""
LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[0-9.]+ (?P<name>.+)")
"""A line of emoji-test.txt."""

VALIDATION_EVERY = 20
HELD_OUT = (
    "cat with tears of joy", "kissing cat", "pouting cat", "see-no-evil monkey", "dog face", "green circle",
    "purple square", "blue heart", "orange book", "white flag", "woman astronaut", "man firefighter", "woman cook",
    "woman running", "man dancing", "woman with white cane", "family: man, man, girl", "seven-thirty", "keycap: 7",
)  # fmt: skip
"""Combinations of things that other emoji show one by one: only in the test split."""


def read_emoji(config: SourceConfig, problems: Problems) -> Listing:
    """The records of every fully qualified emoji; those with a skin tone only if the config asks for them.

    Every twentieth training image serves for validation too, which asks whether a model draws what it has seen. The
    test split asks whether it draws what it has not seen.

    Raises UserError if the files are found nowhere.
    """
    font_path, names_path = find_emoji_files(config.root)
    engine = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
    font = ImageFont.truetype(str(font_path), BITMAP, layout_engine=engine)
    width_of_one = font.getlength("\N{GRINNING FACE}")
    records = []
    for line in names_path.read_text(encoding="utf-8").splitlines():
        match = LINE.match(line)
        if not match or ("skin tone" in match["name"] and not config.skin_tones):
            continue
        name = match["name"]
        text = "".join(chr(int(code, 16)) for code in match["codes"].split())
        if font.getlength(text) > 1.5 * width_of_one:  # a sequence that the font draws as its parts
            problems.add(name, "is not one picture in this font")
            continue
        split = "test" if name in HELD_OUT else "train"
        record = Record(name, partial(_draw_emoji, text, font), (name,), split=split)
        records.append(record)
        if len(records) % VALIDATION_EVERY == 0 and split == "train":
            records.append(record._replace(split="validation"))
    return Listing(records, size=32)


def find_emoji_files(root: Path | None = None) -> tuple[Path, Path]:
    """The font and the list of names, downloaded if need be. Raises UserError if they are found nowhere."""
    if root is None:
        return _find_file(FONT), _find_file(NAMES)
    files = []
    for name in (FONT, NAMES):
        file = next(iter(sorted(root.rglob(name))), None)
        if file is None:
            raise UserError(f"--data.root {root} holds no {name}; expected {FONT} and {NAMES}")
        files.append(file)
    return files[0], files[1]


def _find_file(name: str) -> Path:
    package, path_in_package = PACKAGES[name]
    for path in (RAW / name, Path("/") / path_in_package):
        if path.is_file():
            return path
    RAW.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RAW.parent) as temporary:
        try:
            unpack_package(package, Path(temporary))
            shutil.move(Path(temporary) / path_in_package, RAW / name)
        except Exception as error:  # whatever a download may raise
            raise UserError(
                f"{name} could not be fetched ({reason(error)}); install Debian's package {package}, or name a folder "
                "that holds it with --data.root"
            ) from error
    return RAW / name


def _draw_emoji(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji in the middle of a transparent square."""
    left, top, right, bottom = font.getbbox(text)
    side = max(right - left, bottom - top)
    picture = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    corner = ((side - right - left) // 2, (side - bottom - top) // 2)
    ImageDraw.Draw(picture).text(corner, text, font=font, embedded_color=True)
    return picture
