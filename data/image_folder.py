"""A folder of images with captions.

    metadata.jsonl, .csv, .tsv or .json    rows of file_name and text, the Hub's imagefolder convention; text may be a
                                           list, and the table may lie in a folder below
    captions.txt, Flickr8k.token.txt       the tables of other data sets, see data/folder_contents.py
    name.jpg with name.txt or .caption     one caption per line, also as captions/name.txt of images/name.jpg
    cat/name.jpg                           where there is neither: the names of the folders, "an image of a cat"

Folders train, validation (or val) and test inside a folder are the splits, if there are any.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from data.caption_values import as_captions
from data.class_captions import class_caption
from data.folder_contents import METADATA, Contents, find_contents
from data.folder_files import is_regular_file
from data.folder_names import Folders, name_classes_by_folders, read_split_folders
from data.image_files import IMAGE_SUFFIXES, CaptionsByFile, records_of_files, relative_name
from data.image_table import add_table_captions
from data.problems import Problems
from data.records import Listing
from data.source_config import SourceConfig
from data.table_rows import TABLE_SUFFIXES, decode_noted_lines
from unclip.errors import UserError
from unclip.store.files import check_fetched

LARGEST_TEXT = 2**22
"""Bytes of a text file beside an image; a larger one holds other things than captions."""


def read_image_folder(config: SourceConfig, problems: Problems) -> Listing:
    """The records of a folder, and the names of its classes if its folders are classes.

    Raises UserError if it holds no captioned images, or a table without the columns.
    """
    folder = Path(os.path.abspath(config.source))  # files are compared by whole names, and `..` may be in this one
    contents = find_contents(folder)
    for path, why in contents.refused.items():
        problems.add(relative_name(path, folder), why)
    captioned = bool(contents.tables or contents.texts)
    meanings = dict(
        zip(contents.images, read_split_folders([_folders(i, folder) for i in contents.images], captioned), strict=True)
    )
    outside, tables = _leave_out_images(contents, {i for i in contents.images if meanings[i].is_outside})
    for image in sorted(outside):
        problems.add(relative_name(image, folder), "lies outside of the folders of the splits")
    captions: CaptionsByFile = {}
    for table in tables:
        add_table_captions(captions, table, config.columns, problems, folder, contents.images)
    others = [image for image in contents.images if image not in captions and image not in outside]
    ignored = next((image for image in captions if image in contents.texts), None)
    if ignored:
        problems.note(
            "texts", f"text files of images that a table names are not read, such as {relative_name(ignored, folder)}'s"
        )
    labels = {}
    if not captioned:
        names = name_classes_by_folders([meanings[image].rest for image in others])
        labels = {image: name for image, name in zip(others, names, strict=True) if name is not None}
        if len(set(labels.values())) < 2 and any(meanings[image].rest for image in others):
            problems.note("one class", "the names of folders can serve as captions, if there are two or more")
            labels = {}
    for image in others:
        name = relative_name(image, folder)
        if image in labels:
            captions[image] = [class_caption(labels[image])]
        elif labels:
            problems.add(name, "lies in no folder of a class")
        elif image in contents.texts:
            captions[image] = _read_text_files(image, contents.texts[image], name, problems)
        elif contents.tables:
            several = len(contents.tables) > 1
            problems.add(name, f"is not named in {'any table of captions' if several else contents.tables[0].name}")
        else:
            problems.add(name, f"has no {image.stem}.txt beside it")
    if labels:
        example = next(iter(captions.values()))[0]
        problems.note("classes", f"captions are made of the names of the folders: {example!r}, and so on")
    elif not contents.tables:
        for text in contents.other_texts:
            problems.add(relative_name(text, folder), "has no image beside it")
    splits = {image: meaning.split for image, meaning in meanings.items()}
    records = records_of_files(captions, folder, labels, splits, problems)
    if not records:
        _refuse_empty(folder, config.caption_column, problems)
    return Listing(records, tuple(sorted(set(labels.values()))))


def is_image_folder(folder: Path) -> bool:
    """Whether a folder holds images with captions."""
    contents = find_contents(folder)
    tables_of_images = [table for table in contents.tables if table.suffix != ".json"]  # JSON may be about anything
    return bool(tables_of_images or contents.texts)


def _folders(image: Path, folder: Path) -> Folders:
    return image.relative_to(folder).parent.parts


def _leave_out_images(contents: Contents, outside: set[Path]) -> tuple[set[Path], list[Path]]:
    """The images outside of the folders of splits, and the tables that are not among them.

    No image is outside if a table stands above all images, or apart from them, so that it may name any.
    """
    above_outside = _folders_above(outside)
    above_others = _folders_above(set(contents.images) - outside)
    if any((table.parent in above_outside) == (table.parent in above_others) for table in contents.tables):
        return set(), contents.tables
    return outside, [table for table in contents.tables if table.parent in above_others]


def _folders_above(files: Iterable[Path]) -> set[Path]:
    return {above for folder in {file.parent for file in files} for above in (folder, *folder.parents)}


def _read_text_files(image: Path, texts: list[Path], name: str, problems: Problems) -> list[str]:
    """The captions in the text files of an image."""
    lines = []
    for text in texts:
        try:
            if text.stat().st_size > LARGEST_TEXT:
                raise UserError(f"{text.name} has more than {LARGEST_TEXT // 2**20} MB, which are no captions")
            lines += decode_noted_lines(check_fetched(text).read_bytes(), "text beside images", problems)
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
        problems.add(name, f"{texts[0].name} holds no caption{why}")
    elif not is_regular_file(image):
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
