"""Hugging Face data sets: by a local path (parquet, arrow, a saved data set), or by name from the Hub.

The tables stay on disk, memory-mapped; an image is read on demand.
"""

import glob
import io
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from data.caption_values import as_captions
from data.class_captions import class_caption
from data.file_patterns import match_files
from data.folder_files import is_regular_file, list_files
from data.problems import Problems, quantity
from data.records import Columns, Listing, Record
from data.source_config import SourceConfig
from data.splits import SPLIT_NAMES, split_in_name
from unclip.errors import UserError, reason
from unclip.image_opening import open_image
from unclip.store.files import check_fetched

FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
SAVED = ("state.json", "dataset_dict.json")
"""Files of a data set that `datasets` has saved."""
SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
"""Files that the Hub writes, with any name of a split."""
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
    return is_saved or bool(list_files(folder, FORMATS, FORMATS).files)


def group_files_by_split(files: Sequence[Path], folder: Path, problems: Problems) -> dict[str, list[str]]:
    """Files in a folder by the split that their names say, by the rules of `datasets`.

    If no name says one, all files are for training; if some do, the others are added to `problems`.
    """
    by_split: dict[str | None, list[str]] = {}
    for find_split in (_split_of_shard, _split_of_folders, _split_of_name):
        by_split = defaultdict(list)
        for file in files:
            by_split[find_split(file.relative_to(folder))].append(str(file))
        others = by_split.pop(None, [])
        if by_split:
            break
    else:
        return {"train": list(map(str, files))}
    for other in others:
        name = str(Path(other).relative_to(folder))
        problems.add(name, "is not used: the names of other files say which split they are")
    return dict(by_split)


def _split_of_shard(path: Path) -> str | None:
    """Any name of a split: data/unlabelled-00000-of-00002.parquet."""
    match = SHARD.fullmatch(path.as_posix())
    return match and match[1]


def _split_of_folders(path: Path) -> str | None:
    return next(filter(None, map(split_in_name, reversed(path.parent.parts))), None)


def _split_of_name(path: Path) -> str | None:
    return split_in_name(path.name)


def _open_tables(source: str, split: str | None, problems: Problems) -> dict[str, Any]:
    """The data set's tables by split. If a split is asked for, it alone, as "train"."""
    import datasets  # seconds to import, so only here

    path = Path(source)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # the error that is raised says all that it would log
    try:
        if any((path / name).is_file() for name in SAVED):
            loaded = datasets.load_from_disk(source)
        elif files := _list_table_files(path, problems):
            suffix = files[0].suffix.lower()
            folder = path if path.is_dir() else path.parent
            used = [file for file in files if file.suffix.lower() == suffix]
            for file in files[len(used) :]:
                problems.add(str(file.relative_to(folder)), f"is not used: {suffix} files are read")
            by_split = {"train": [source]} if path.is_file() else group_files_by_split(used, folder, problems)
            loaded = datasets.load_dataset(
                FORMATS[suffix], data_files={name: _check_files(names) for name, names in by_split.items()}
            )
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


def _list_table_files(path: Path, problems: Problems) -> list[Path]:
    """The files of tables that a path or a pattern names, those of the preferred format first."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        files = match_files(str(path))
    else:
        files, refused = list_files(path, FORMATS, FORMATS)
        for file, why in refused.items():
            problems.add(str(file.relative_to(path)), why)
    formats = list(FORMATS)
    return sorted(files, key=lambda file: formats.index(file.suffix.lower()))


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

    image_column = columns.find_image(source, table.column_names, problems)
    caption_column = columns.find_caption(source, table.column_names, problems)
    feature = table.features[caption_column]
    classes = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    item_feature = getattr(feature, "feature", None)  # the type of a list's items
    item_classes = item_feature.names if isinstance(item_feature, datasets.ClassLabel) else None
    if isinstance(table.features[image_column], datasets.Image):
        table = table.cast_column(image_column, datasets.Image(decode=False))
    images = table.select_columns([image_column])
    records = []
    for row, value in enumerate(table[caption_column]):
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
        file = (source if source.is_dir() else source.parent) / value
        if not is_regular_file(file):
            raise UserError(f"{value} is missing, or not a file")
        return open_image(file)
    if value is None:
        raise UserError("the row has none")
    kind = type(value).__name__
    raise UserError(f"the column holds a {kind}, not the bytes or the name of an image file; see --data.image-column")
