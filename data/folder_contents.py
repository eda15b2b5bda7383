"""The images of a folder, the text files that belong to them, and the tables of captions.

The text of images/cat/1.jpg is the file beside it, images/cat/1.txt, 1.caption or 1.jpg.txt, or the file of the same
name in a folder that holds texts where images/ holds images: captions/cat/1.txt.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.folder_files import list_files
from data.image_files import IMAGE_SUFFIXES
from data.image_table import is_headed_table
from data.table_rows import TABLE_SUFFIXES

TEXT_SUFFIXES = (".txt", ".caption")
METADATA = tuple(f"metadata{suffix}" for suffix in TABLE_SUFFIXES)
"""Names of tables by the Hub's convention, in the order in which they are preferred."""
CAPTIONS = re.compile(r"captions?(_.*)?\.(csv|tsv|jsonl|json|txt)|[^.]+\.token(\.txt)?|results\.csv", re.IGNORECASE)
"""Names of tables in well-known data sets: COCO, Flickr8k, Flickr30k."""


class Contents(NamedTuple):
    """The files of interest in a folder, at any depth."""

    images: list[Path]
    texts: dict[Path, list[Path]]
    """The text files of each image that has any."""
    other_texts: list[Path]
    """Text files without an image."""
    tables: list[Path]
    refused: dict[Path, str]
    """Files that must not be read, each with the reason."""


def find_contents(folder: Path) -> Contents:
    """Find the images, texts and tables of a folder, without reading more than the first lines of tables."""
    files, refused = list_files(folder, {*IMAGE_SUFFIXES, *TEXT_SUFFIXES, *TABLE_SUFFIXES, ".token"}, IMAGE_SUFFIXES)
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    texts, other_texts = _match_texts(images, [file for file in files if file.suffix.lower() in TEXT_SUFFIXES], folder)
    tables = _find_metadata(files, is_paired=bool(texts))
    if not tables and not texts:
        tables = [file for file in files if CAPTIONS.fullmatch(file.name) and is_headed_table(file)]
    other_texts = [text for text in other_texts if text not in tables]
    return Contents(images, texts, other_texts, tables, refused)


def _find_metadata(files: list[Path], is_paired: bool) -> list[Path]:
    """The metadata files, at most one of each folder. Beside texts, a metadata.json is often about other things."""
    tables: dict[Path, Path] = {}
    for name in METADATA:
        for file in files:
            if file.name.lower() == name and not (is_paired and file.suffix == ".json"):
                tables.setdefault(file.parent, file)
    return list(tables.values())


def _match_texts(images: list[Path], texts: list[Path], folder: Path) -> tuple[dict[Path, list[Path]], list[Path]]:
    """The texts of each image, and the texts without one."""
    by_stem = defaultdict(list)
    for text in texts:
        by_stem[text.with_suffix("")].append(text)
    matched = {image: beside for image in images if (beside := by_stem[image.with_suffix("")] or by_stem[image])}
    used = {text for of_image in matched.values() for text in of_image}
    others = [text for text in texts if text not in used]
    for text, image in _match_parallel_folders(images, texts, used.union(matched), folder):
        matched.setdefault(image, []).append(text)
        used.add(text)
    return matched, [text for text in others if text not in used]


def _match_parallel_folders(
    images: list[Path], texts: list[Path], matched: set[Path], folder: Path
) -> Iterator[tuple[Path, Path]]:
    """Pairs of a text and an image whose paths differ in one folder: captions/cat/1.txt and images/cat/1.jpg.

    The image may also lie above: cat/1.jpg. The one folder must hold no images, and the other no texts. Of several
    images, the one in a folder named images is meant, or else none.

    Args:
        matched: images and texts that belong together already.
    """
    relative = {file: file.relative_to(folder).with_suffix("").parts for file in (*images, *texts)}
    with_images = {relative[image][: depth + 1] for image in images for depth in range(len(relative[image]) - 1)}
    with_texts = {relative[text][: depth + 1] for text in texts for depth in range(len(relative[text]) - 1)}
    by_key = defaultdict(list)
    for image in (image for image in images if image not in matched):
        parts = relative[image]
        by_key[parts, None].append(image)
        for depth in range(len(parts) - 1):
            if parts[: depth + 1] not in with_texts:
                by_key[parts[:depth], parts[depth + 1 :]].append(image)
    for text in (text for text in texts if text not in matched):
        parts = relative[text]
        for depth in range(len(parts) - 1):
            if parts[: depth + 1] not in with_images:
                above = parts[:depth]
                below = parts[depth + 1 :]
                partners = by_key.get((above, below), []) + by_key.get(((*above, *below), None), [])
                if len(partners) > 1:
                    partners = [image for image in partners if relative[image][depth].lower().startswith("im")]
                if len(partners) == 1:
                    yield text, partners[0]
                    break
