"""A folder of images with captions.

    metadata.jsonl, .csv, .tsv or .json    rows of file_name and text, the Hub's imagefolder convention; text may be a
                                           list, and the table may lie in a folder below
    name.jpg with name.txt                 one caption per line
    cat/name.jpg                           where there is neither: the names of the folders, "an image of a cat"

Folders train, validation (or val) and test inside a folder are the splits, if there are any.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.caption_values import as_captions
from data.class_captions import class_caption
from data.image_files import (
    IMAGE_SUFFIXES,
    CaptionsByFile,
    is_existing_file,
    is_hidden,
    records_of_files,
    relative_name,
)
from data.image_table import add_table_captions
from data.problems import Problems
from data.records import Listing
from data.source_config import SourceConfig
from data.splits import SPLIT_NAMES
from data.table_rows import TABLE_SUFFIXES, decode_noted_lines
from unclip.errors import UserError
from unclip.store.files import check_fetched

METADATA = tuple(f"metadata{suffix}" for suffix in TABLE_SUFFIXES)


class Contents(NamedTuple):
    """The files of interest in a folder, at any depth."""

    images: list[Path]
    texts: dict[Path, Path]
    """Text files by their names without .txt."""
    tables: list[Path]
    """Metadata files, at most one in each folder."""

    def has_text(self, image: Path) -> bool:
        return image.with_suffix("") in self.texts


def read_image_folder(config: SourceConfig, problems: Problems) -> Listing:
    """The records of a folder, and the names of its classes if its folders are classes.

    Raises UserError if it holds no captioned images, or a table without the columns.
    """
    folder = Path(os.path.abspath(config.source))  # files are compared by whole names, and `..` may be in this one
    contents = _find_contents_in_splits(folder, problems)
    captions: CaptionsByFile = {}
    for table in contents.tables:
        add_table_captions(captions, table, folder, config.columns, problems)
    others = [image for image in contents.images if image not in captions]
    ignored = next((image for image in captions if contents.has_text(image)), None)
    if ignored:
        problems.note(
            "texts", f"text files of images that a table names are not read, such as {relative_name(ignored, folder)}'s"
        )
    labels = {}
    if not contents.tables and not any(map(contents.has_text, others)):
        labels = _classes_by_folder(others, folder, problems)
    for image in others:
        name = relative_name(image, folder)
        if image in labels:
            captions[image] = [class_caption(labels[image])]
        elif labels:
            problems.add(name, "lies in no folder of a class")
        elif contents.has_text(image):
            captions[image] = _read_text_file(image, contents.texts[image.with_suffix("")], name, problems)
        elif contents.tables:
            several = len(contents.tables) > 1
            problems.add(name, f"is not named in {'any metadata file' if several else contents.tables[0].name}")
        else:
            problems.add(name, f"has no {image.stem}.txt beside it")
    if labels:
        example = next(iter(captions.values()))[0]
        problems.note("classes", f"captions are made of the names of the folders: {example!r}, and so on")
    elif not contents.tables:
        illustrated = {image.with_suffix("") for image in others}
        for stem, text in contents.texts.items():
            if stem not in illustrated:
                problems.add(relative_name(text, folder), "has no image beside it")
    records = records_of_files(captions, folder, labels, problems)
    if not records:
        _refuse_empty(folder, config.caption_column, problems)
    return Listing(records, tuple(sorted(set(labels.values()))))


def is_image_folder(folder: Path) -> bool:
    """Whether a folder holds images with captions."""
    contents = _find_contents(folder)
    tables_of_images = [table for table in contents.tables if table.suffix != ".json"]  # JSON may be about anything
    return bool(tables_of_images) or any(map(contents.has_text, contents.images))


def _find_contents(folder: Path) -> Contents:
    files = sorted(path for path in _walk_files(folder) if not is_hidden(path, folder))
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    contents = Contents(images, texts, [])
    paired = any(map(contents.has_text, images))  # then a metadata.json is often about other things
    tables: dict[Path, Path] = {}
    for name in METADATA:
        for file in files:
            if file.name.lower() == name and not (paired and file.suffix == ".json"):
                tables.setdefault(file.parent, file)
    return contents._replace(tables=list(tables.values()))


def _walk_files(folder: Path) -> Iterator[Path]:
    """All files at any depth. Links to folders are followed, but no folder is entered twice."""
    entered = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        yield from (Path(place, name) for name in names)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in entered]
        entered.update(real.values())


def _find_contents_in_splits(folder: Path, problems: Problems) -> Contents:
    """The contents of the folders of the splits; of the whole folder if it has none, or a table beside them."""
    contents = _find_contents(folder)
    split_folders = _split_folders(folder)
    if not split_folders or any(table.parent == folder for table in contents.tables):
        return contents

    def is_inside(file: Path) -> bool:
        return any(file.is_relative_to(split_folder) for split_folder in split_folders)

    for image in contents.images:
        if not is_inside(image):
            problems.add(relative_name(image, folder), "lies outside of the folders of the splits")
    return Contents(
        list(filter(is_inside, contents.images)),
        {stem: text for stem, text in contents.texts.items() if is_inside(text)},
        list(filter(is_inside, contents.tables)),
    )


def _split_folders(folder: Path) -> list[Path]:
    """The folders named as splits, in upper or lower case."""
    return [path for path in folder.iterdir() if path.name.lower() in SPLIT_NAMES and path.is_dir()]


def _classes_by_folder(images: list[Path], folder: Path, problems: Problems) -> dict[Path, str]:
    """The class of each image: the name of its folder, if there are at least two such folders."""
    not_classes = [folder, *_split_folders(folder)]
    labels = {image: image.parent.name.replace("_", " ") for image in images if image.parent not in not_classes}
    count = len(set(labels.values()))
    if count == 1:
        problems.note("one class", "the names of folders can serve as captions, if there are two or more")
    return labels if count > 1 else {}


def _read_text_file(image: Path, text: Path, name: str, problems: Problems) -> list[str]:
    """The captions in the text file beside an image."""
    try:
        lines = decode_noted_lines(check_fetched(text).read_bytes(), "text beside images", problems)
    except UserError as error:
        problems.add(name, str(error))
        return []
    except UnicodeDecodeError as error:
        problems.add(name, f"{text.name} is not readable as text ({error.reason} at byte {error.start})")
        return []
    except OSError as error:
        problems.add(name, f"{text.name} cannot be read ({error.strerror})")
        return []
    captions = as_captions(lines, problems)
    if not captions:
        why = " that is text in UTF-8, UTF-16 or Windows-1252" if any(map(str.strip, lines)) else ""
        problems.add(name, f"{text.name} holds no caption{why}")
    elif not is_existing_file(image):
        problems.add(name, "the file is missing")
        return []
    return list(captions)


def _refuse_empty(folder: Path, caption_column: str, problems: Problems) -> None:
    """Raise UserError for a folder without usable images, unless the problems of its files say it all."""
    tables = [path for suffix in TABLE_SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    image_stems = {path.stem for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    other_tables = [path for path in tables if path.name not in METADATA and path.stem not in image_stems]
    if other_tables:
        raise UserError(
            f"{folder} holds no captions where they are looked for; if they are in {other_tables[0].name}, give "
            f"{other_tables[0]} as the source"
        )
    if not problems.rows:
        raise UserError(
            f"{folder} holds no captioned images; expected metadata.jsonl or metadata.csv with file_name and "
            f"{caption_column}, name.txt beside each name.jpg, or a folder of images for each class"
        )
