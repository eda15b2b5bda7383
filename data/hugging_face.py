"""Hugging Face data sets: by a local path (parquet, arrow, a saved data set), or by name from the Hub.

The tables stay on disk, memory-mapped; an image is read on demand.
"""

import glob
import io
import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from data.caption_values import as_captions
from data.class_captions import class_caption
from data.problems import Problems, quantity
from data.records import Columns, Listing, Record, check_column
from data.source_config import SourceConfig
from data.splits import SPLIT_NAMES
from unclip.errors import UserError, reason
from unclip.image_opening import open_image
from unclip.store.files import check_fetched

FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
SAVED = ("state.json", "dataset_dict.json")
"""Files of a data set that `datasets` has saved."""
PLAIN = {"corresponds to no data": "it has no rows", "Couldn't cast": "its files have different columns"}
"""Plain words for errors of `datasets`."""


def read_hugging_face(config: SourceConfig, problems: Problems) -> Listing:
    """The records, and the names of the classes if the caption column holds class labels.

    Raises UserError if there is no such data set, or no such column.
    """
    records: list[Record] = []
    classes: tuple[str, ...] = ()
    tables = _open_tables(config.source, config.split, problems)
    for name, table in tables.items():
        if len(tables) > 1 and name not in SPLIT_NAMES:
            why = f"its {quantity(len(table), 'row')} are not used; name a split with --data.split"
            problems.add(f"split {name}", why, len(table))
            continue
        split = SPLIT_NAMES[name] if len(tables) > 1 else None
        table_records, table_classes = _read_table(config.source, name, table, split, config.columns, problems)
        records += table_records
        classes = table_classes or classes
    return Listing(records, classes)


def is_saved_data_set(folder: Path) -> bool:
    """Whether a folder holds the tables of a data set."""
    is_saved = any((folder / name).is_file() for name in SAVED)
    return is_saved or any(any(folder.rglob(f"*{suffix}")) for suffix in FORMATS)


def group_files_by_split(folder: Path, suffixes: Iterable[str], problems: Problems) -> tuple[str, dict[str, list[str]]]:
    """The first of the suffixes that files in a folder have, and those files by split.

    `datasets` knows the split by the name. If no name says one, all files are for training; if some do, the others are
    added to `problems`.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns  # seconds to import, so only here

    files_by_suffix = {
        suffix: [file for file in sorted(folder.rglob(f"*{suffix}")) if not file.name.startswith(".")]
        for suffix in suffixes
    }
    chosen_suffix = next(suffix for suffix, files in files_by_suffix.items() if files)
    names = {os.path.realpath(file): str(file) for file in files_by_suffix[chosen_suffix]}
    pattern = glob.escape(os.path.realpath(folder))
    patterns = get_data_patterns(pattern)
    splits = {}
    for split, files in DataFilesDict.from_patterns(patterns, base_path=pattern).items():
        split_files = [names[file] for file in map(os.path.realpath, files) if file in names]
        if split_files:
            splits[str(split)] = split_files
    splits = splits or {"train": list(names.values())}
    used = {file for files in splits.values() for file in files}
    for file in (file for files in files_by_suffix.values() for file in files):
        if str(file) not in used:
            name = str(file.relative_to(folder))
            problems.add(name, "is not used: the names of other files say which split they are")
    return chosen_suffix, splits


def _open_tables(source: str, split: str | None, problems: Problems) -> dict[str, Any]:
    """The data set's tables by split. If a split is asked for, it alone, as "train"."""
    import datasets  # seconds to import, so only here

    path = Path(source)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # the error that is raised says all that it would log
    try:
        if any((path / name).is_file() for name in SAVED):
            loaded = datasets.load_from_disk(source)
        elif path.is_file():
            loaded = datasets.load_dataset(FORMATS[path.suffix.lower()], data_files=_check_files([source]))
        elif path.is_dir():
            suffix, files = group_files_by_split(path, FORMATS, problems)
            files = {name: _check_files(names) for name, names in files.items()}
            loaded = datasets.load_dataset(FORMATS[suffix], data_files=files)
        else:
            loaded = datasets.load_dataset(source)
    except UserError:
        raise
    except Exception as error:  # it raises what its readers and its network library raise
        why = reason(error.__cause__ or error)
        why = next((plain for words, plain in PLAIN.items() if words in why), why)
        raise UserError(f"{source} cannot be opened as a data set ({why})") from error
    tables = loaded if isinstance(loaded, dict) else {"train": loaded}
    if split is None:
        return tables
    if split not in tables:
        raise UserError(f"{source} has no split {split}; name one of {', '.join(tables)} with --data.split")
    return {"train": tables[split]}


def _check_files(files: list[str]) -> list[str]:
    """File names escaped so that `datasets` does not take them for patterns.

    Raises UserError for the first file whose content is not what its name says.
    """
    for file in files:
        with open(check_fetched(Path(file)), "rb") as content:
            if file.lower().endswith(".parquet") and content.read(4) != b"PAR1":
                raise UserError(f"{file} is not a parquet file, though its name says so; fetch or write it again")
    return list(map(glob.escape, files))


def _read_table(
    source: str, name: str, table: Any, split: str | None, columns: Columns, problems: Problems
) -> tuple[list[Record], tuple[str, ...]]:
    """The records of one table, and the names of the classes that its captions are, if they are class labels."""
    import datasets

    check_column(source, columns.image, table.column_names, "image-column")
    check_column(source, columns.caption, table.column_names, "caption-column")
    feature = table.features[columns.caption]
    classes = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    item_feature = getattr(feature, "feature", None)  # the type of a list's items
    item_classes = item_feature.names if isinstance(item_feature, datasets.ClassLabel) else None
    if isinstance(table.features[columns.image], datasets.Image):
        table = table.cast_column(columns.image, datasets.Image(decode=False))
    images = table.select_columns([columns.image])
    records = []
    for row, value in enumerate(table[columns.caption]):
        row_name = f"{name} {row}"
        label = None
        if classes:
            label = value
            if label not in range(len(classes)) and label is not None:
                problems.add(row_name, f"has the unknown class {label}")
                continue
            value = None if label is None else class_caption(classes[label])
        elif item_classes:
            value = [class_caption(item_classes[item]) for item in value or () if item in range(len(item_classes))]
        captions = as_captions(value, problems)
        if captions:
            opener = partial(_open_image, images, row, Path(source))
            records.append(Record(row_name, opener, captions, label, split, f"{images._fingerprint} {row}"))
        else:
            problems.add(row_name, "has no caption that is text")
    return records, classes


def _open_image(table: Any, row: int, source: Path) -> Image.Image:
    """The image of a row: encoded bytes, or a path, which may be relative to the data set's folder.

    Raises UserError for anything else, and what Pillow and the disk raise.
    """
    value = next(iter(table[row].values()))
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return open_image(io.BytesIO(value))
    if isinstance(value, str) and "://" in value:
        raise UserError(f"{value} is a web address; download the image, and name its file")
    if isinstance(value, str):
        return open_image((source if source.is_dir() else source.parent) / value)
    if value is None:
        raise UserError("the row has none")
    kind = type(value).__name__
    raise UserError(f"the column holds a {kind}, not the bytes or the name of an image file; see --data.image-column")
