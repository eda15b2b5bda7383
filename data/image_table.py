"""A table of file names and captions: NAME.csv, .tsv, .txt, .jsonl or .json, also COCO's captions.

The images lie beside the table, or in one folder beside it. Several rows about one image are several captions of it.
The table may also lie in a folder of images (data/image_folder.py).
"""

import os
import unicodedata
from pathlib import Path

from data.caption_values import as_captions
from data.image_files import CaptionsByFile, is_existing_file, is_hidden, records_of_files, relative_name
from data.problems import Problems
from data.records import Columns, Listing, check_column
from data.source_config import SourceConfig
from data.table_rows import read_rows
from unclip.errors import UserError


def read_image_table(config: SourceConfig, problems: Problems) -> Listing:
    """The records of a table. Raises UserError if it has no rows, or lacks the columns."""
    path = Path(os.path.abspath(config.source))
    captions: CaptionsByFile = {}
    add_table_captions(captions, path, None, config.columns, problems)
    records = records_of_files(captions, path.parent, {}, problems)
    if not records and not problems.rows:
        raise UserError(f"{path} holds no rows; expected columns for the file's name and for {config.caption_column}")
    return Listing(records)


def add_table_captions(
    captions: CaptionsByFile, table: Path, root: Path | None, columns: Columns, problems: Problems
) -> None:
    """Add the captions of a table to `captions`, with an entry for each file that it names.

    With a `root`, files outside of it are refused, and a table without rows is a problem. Raises UserError if the table
    lacks the columns.
    """
    table_name = relative_name(table, root or table.parent)
    rows = read_rows(table, table_name, problems)
    if not rows:
        if root:
            problems.add(table_name, "holds no rows")
        return
    known = dict.fromkeys(column for _, row in rows for column in row if column is not None)
    image_column = next((column for column in (columns.image, "file_name") if column in known), "file_name")
    described = table if table.suffix.startswith(".json") else f"{table}, by its first line,"
    check_column(described, image_column, known, "image-column")
    check_column(described, columns.caption, known, "caption-column")
    folders = _folders_beside(table)
    for place, row in rows:
        name = str(row.get(image_column, "")).strip()
        file = _named_file(table.parent, name)
        elsewhere = []
        if not is_existing_file(file):
            elsewhere = list(filter(is_existing_file, (_named_file(folder, name) for folder in folders)))
        if name and len(elsewhere) == 1:
            file = elsewhere[0]
            folder_name = relative_name(file.parent, table.parent)
            problems.note("beside", f"files that {table.name} names are found in {folder_name}")
        if name:
            captions.setdefault(file, [])
        if None in row:
            problems.add(place, "has more values than there are columns; quote captions with commas")
            continue
        if lacking := [column for column in (image_column, columns.caption) if column not in row]:
            problems.add(place, f"has no {lacking[0]}; its columns are {', '.join(map(str, row))}")
            continue
        if not name:
            problems.add(place, f"has an empty {image_column}")
            continue
        place = f"{place} ({name})"
        row_captions = as_captions(row[columns.caption], problems)
        if not row_captions:
            problems.add(place, "has no caption that is text")
        elif "://" in name:
            problems.add(place, "is a web address; download the image, and name its file")
        elif len(elsewhere) > 1:
            places = " and ".join(relative_name(other.parent, table.parent) for other in elsewhere)
            problems.add(place, f"the file is not beside the table, and lies in {places}; name its folder too")
        elif root and not file.is_relative_to(root):
            problems.add(place, "the file lies outside of the folder")
        elif not is_existing_file(file):
            problems.add(place, "the file is missing")
        else:
            captions[file].extend(row_captions)


def _folders_beside(table: Path) -> list[Path]:
    """The folders in which files may lie that a table names without a folder.

    They lie beside the table, or, as in COCO, beside its folder `annotations`.
    """
    around = table.parent.parent if table.parent.name == "annotations" else table.parent
    return sorted(path for path in around.iterdir() if path.is_dir() and not is_hidden(path, around))


def _named_file(folder: Path, name: str) -> Path:
    """The file that a table names: as written, with Windows' separators, or in another Unicode normal form.

    Links are followed wherever they lead.
    """
    forms = (name, name.replace("\\", "/"), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    files = [Path(os.path.normpath(folder / form)) for form in forms]
    return next(filter(is_existing_file, files), files[0])
