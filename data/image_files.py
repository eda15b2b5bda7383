"""Image files on disk that captions have been found for, and the records of them."""

import os
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from data.problems import Problems
from data.records import Record, file_version
from unclip.errors import printable
from unclip.image_opening import open_image
from unclip.store.files import check_fetched

IMAGE_SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif", ".jxl", ".gif", ".bmp",
    ".dib", ".ico", ".psd", ".pcx", ".tif", ".tiff", ".tga", ".qoi", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm",
    ".svg",
}  # fmt: skip
"""Suffixes of images, including some that Pillow may not read."""

CaptionsByFile = dict[Path, list[str]]
"""The captions of each image file. An empty list marks a file whose captions cannot be used."""


def records_of_files(
    captions: CaptionsByFile,
    folder: Path,
    labels: dict[Path, str],
    splits: dict[Path, str | None],
    problems: Problems,
) -> list[Record]:
    """A record for each file that has captions and a format that Pillow reads.

    Args:
        folder: names are relative to it.
        labels: the class of each file, if they have classes.
        splits: the split of each file, if the source has splits.
    """
    Image.init()
    unknown_suffixes = {suffix for suffix in IMAGE_SUFFIXES if Image.EXTENSION.get(suffix) not in Image.OPEN}
    class_numbers = {name: number for number, name in enumerate(sorted(set(labels.values())))}
    records = []
    for file, file_captions in captions.items():
        if not file_captions:
            continue
        name = printable(relative_name(file, folder))
        suffix = file.suffix.lower()
        if suffix in unknown_suffixes:
            problems.add(name, f"Pillow cannot read {suffix} files here; save the image as PNG or JPEG")
            continue
        records.append(
            Record(
                name,
                partial(_open_image, file),
                tuple(dict.fromkeys(file_captions)),
                label=class_numbers.get(labels.get(file)),
                split=splits.get(file),
                version=file_version(file),
            )
        )
    return records


def relative_name(file: Path, folder: Path) -> str:
    """The name of a file in messages and splits: the same wherever its folder lies."""
    return os.path.relpath(file, folder)


def _open_image(file: Path) -> Image.Image:
    """Raises what Pillow raises, and UserError for a pointer of Git LFS."""
    try:
        return open_image(file)
    except UnidentifiedImageError:
        check_fetched(file)
        raise
