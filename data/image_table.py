"""A table of file names and captions: NAME.csv, .tsv, .txt, .jsonl or .json, also COCO's and Flickr8k's captions.

The images lie beside the table, or in a folder beside it. Several rows about one image are several captions of it.
The table may also lie in a folder of images (data/image_folder.py).
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath

from data.caption_values import as_captions
from data.folder_files import is_regular_file, list_files
from data.folder_names import read_split_folders
from data.image_files import IMAGE_SUFFIXES, CaptionsByFile, records_of_files, relative_name
from data.problems import Problems
from data.records import CAPTION_COLUMNS, IMAGE_COLUMNS, Columns, Listing
from data.source_config import SourceConfig
from data.table_rows import read_csv_columns, read_rows
from unclip.errors import UserError

DEPTH = 2
"""How many folders deep images are looked for beside a table."""


def read_image_table(config: SourceConfig, problems: Problems) -> Listing:
    """The records of a table. Raises UserError if it has no rows, or lacks the columns."""
    path = Path(os.path.abspath(config.source))
    captions: CaptionsByFile = {}
    add_table_captions(captions, path, config.columns, problems)
    places = [PurePath(relative_name(file.parent, path.parent)).parts for file in captions]
    meanings = read_split_folders(places, captioned=True)
    splits = {file: meaning.split for file, meaning in zip(captions, meanings, strict=True)}
    records = records_of_files(captions, path.parent, {}, splits, problems)
    if not records and not problems.rows:
        raise UserError(f"{path} holds no rows; expected columns for the file's name and for {config.caption_column}")
    return Listing(records)


def is_headed_table(path: Path) -> bool:
    """Whether a table has columns for images and captions, by its first line; JSON is taken for one unread."""
    if path.suffix.lower().startswith(".json"):
        return True
    columns = {column.lower() for column in read_csv_columns(path)}
    return not columns.isdisjoint(IMAGE_COLUMNS) and not columns.isdisjoint(CAPTION_COLUMNS)


def add_table_captions(
    captions: CaptionsByFile,
    table: Path,
    columns: Columns,
    problems: Problems,
    root: Path | None = None,
    images: Sequence[Path] | None = None,
) -> None:
    """Add the captions of a table to `captions`, with an entry for each file that it names.

    Raises UserError if the table lacks the columns.

    Args:
        root: files outside of it are refused, and a table without rows is a problem. None allows files anywhere.
        images: the images among which those that are not beside the table are looked for; by default, those in folders
            beside it.
    """
    table_name = relative_name(table, root or table.parent)
    rows = read_rows(table, table_name, problems)
    if not rows:
        if root:
            problems.add(table_name, "holds no rows")
        return
    known = dict.fromkeys(column for _, row in rows for column in row if column is not None)
    described = table if table.suffix.startswith(".json") else f"{table}, by its first line,"
    image_column = columns.find_image(described, known, problems)
    caption_column = columns.find_caption(described, known, problems)

    @cache
    def images_by_name() -> dict[str, list[Path]]:
        return _index_by_name(_list_images_beside(table) if images is None else images)

    for place, row in rows:
        name = str(row.get(image_column, "")).strip()
        file = _named_file(table.parent, name)
        elsewhere = []
        if not is_regular_file(file):
            elsewhere = _find_by_end(images_by_name(), name)
        if name and len(elsewhere) == 1:
            file = elsewhere[0]
            folder_name = relative_name(file.parent, table.parent)
            problems.note("beside", f"files that {table.name} names are found in {folder_name}")
        if name:
            captions.setdefault(file, [])
        if None in row:
            problems.add(place, "has more values than there are columns; quote captions with commas")
            continue
        if lacking := [column for column in (image_column, caption_column) if column not in row]:
            problems.add(place, f"has no {lacking[0]}; its columns are {', '.join(map(str, row))}")
            continue
        if not name:
            problems.add(place, f"has an empty {image_column}")
            continue
        place = f"{place} ({name})"
        row_captions = as_captions(row[caption_column], problems)
        if not row_captions:
            problems.add(place, "has no caption that is text")
        elif "://" in name:
            problems.add(place, "is a web address; download the image, and name its file")
        elif len(elsewhere) > 1:
            places = " and ".join(relative_name(other.parent, table.parent) for other in elsewhere)
            problems.add(place, f"the file is not beside the table, and lies in {places}; name its folder too")
        elif root and not file.is_relative_to(root):
            problems.add(place, "the file lies outside of the folder")
        elif not is_regular_file(file):
            problems.add(place, "the file is missing")
        else:
            captions[file].extend(row_captions)


def _list_images_beside(table: Path) -> list[Path]:
    """The images in folders beside a table; or, where there are none, and for COCO, beside the table's own folder."""
    folder = table.parent
    images = []
    if folder.name != "annotations":
        images = list_files(folder, IMAGE_SUFFIXES, IMAGE_SUFFIXES, DEPTH).files
    return images or list_files(folder.parent, IMAGE_SUFFIXES, IMAGE_SUFFIXES, DEPTH).files


def _index_by_name(images: Sequence[Path]) -> dict[str, list[Path]]:
    index = defaultdict(list)
    for image in images:
        index[unicodedata.normalize("NFC", image.name)].append(image)
    return index


def _find_by_end(images_by_name: dict[str, list[Path]], name: str) -> list[Path]:
    """The images whose paths end with a name, which may hold folders."""
    for form in _forms(name):
        parts = PurePath(os.path.normpath(unicodedata.normalize("NFC", form))).parts
        images = images_by_name.get(parts[-1], []) if parts else []
        if matching := [image for image in images if image.parts[-len(parts) : -1] == parts[:-1]]:
            return matching
    return []


def _named_file(folder: Path, name: str) -> Path:
    """The file that a table names, in one of the `_forms` of its name. Links are followed wherever they lead."""
    files = [Path(os.path.normpath(folder / form)) for form in _forms(name)]
    return next(filter(is_regular_file, files), files[0])


def _forms(name: str) -> dict[str, None]:
    """A name as written, with Windows' separators, in another Unicode normal form, and without a caption's number."""
    forms = (
        name,
        name.replace("\\", "/"),
        *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")),
        re.sub(r"#\d+$", "", name),
    )
    return dict.fromkeys(forms)
