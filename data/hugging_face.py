"""Hugging Face data sets: by a local path (parquet, arrow, a saved data set), or by name from the Hub.

The tables stay on disk, memory-mapped; only the images that are asked for are read.
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
from data.splits import SPLIT_NAMES
from unclip.errors import UserError, reason
from unclip.store.files import check_fetched

FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
PLAIN = {"corresponds to no data": "it has no rows", "Couldn't cast": "its files have different columns"}
"""What errors of `datasets` mean."""


def read(source: str, columns: Columns, split: str | None, problems: Problems) -> Listing:
    """The records, and the names of the classes where the caption column holds class labels.

    Raises UserError if there is no such data set, or no such column.
    """
    import datasets  # seconds to import, so only here

    records: list[Record] = []
    classes: tuple[str, ...] = ()
    tables = _open(source, split, problems)
    for name, table in tables.items():
        if len(tables) > 1 and name not in SPLIT_NAMES:
            why = f"its {quantity(len(table), 'row')} are not used; name a split with --data.split"
            problems.add(f"split {name}", why, len(table))
            continue
        check_column(source, columns.image, table.column_names, "image-column")
        check_column(source, columns.caption, table.column_names, "caption-column")
        feature = table.features[columns.caption]
        if isinstance(feature, datasets.ClassLabel):
            classes = tuple(feature.names)
        several = getattr(feature, "feature", None)  # of a list: what it holds
        names = several.names if isinstance(several, datasets.ClassLabel) else None
        if isinstance(table.features[columns.image], datasets.Image):
            table = table.cast_column(columns.image, datasets.Image(decode=False))
        images = table.select_columns([columns.image])
        for row, value in enumerate(table[columns.caption]):
            if names:
                value = [class_caption(names[one]) for one in value or () if one in range(len(names))]
            label = value if classes else None
            known = label is None or label in range(len(classes))
            captions = as_captions(value if label is None else class_caption(classes[label]) if known else "", problems)
            if captions:
                opened, version = partial(_image, images, row, Path(source)), f"{images._fingerprint} {row}"
                own = SPLIT_NAMES[name] if len(tables) > 1 else None
                records.append(Record(f"{name} {row}", opened, captions, label, own, version))
            else:
                why = "has no caption that is text" if known else f"has the unknown class {label}"
                problems.add(f"{name} {row}", why)
    return Listing(records, classes)


def is_one(folder: Path) -> bool:
    """Whether a folder holds a data set's tables rather than images with captions beside them."""
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return saved or any(any(folder.rglob(f"*{end}")) for end in FORMATS)


def _open(source: str, split: str | None, problems: Problems) -> dict[str, Any]:
    """The data set's tables by split; one that is asked for stands for them all."""
    import datasets

    path = Path(source)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs of an error is in the error
    try:
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(source)
        elif path.is_file():
            found = datasets.load_dataset(FORMATS[path.suffix.lower()], data_files=_checked([source]))
        elif path.is_dir():
            suffix, files = files_by_split(path, FORMATS, problems)
            files = {split: _checked(names) for split, names in files.items()}
            found = datasets.load_dataset(FORMATS[suffix], data_files=files)
        else:
            found = datasets.load_dataset(source)
    except UserError:
        raise
    except Exception as error:  # it raises what its readers and its network library raise
        why = reason(error.__cause__ or error)
        why = next((plain for words, plain in PLAIN.items() if words in why), why)
        raise UserError(f"{source} cannot be opened as a data set ({why})") from error
    tables = found if isinstance(found, dict) else {"train": found}
    if split is None:
        return tables
    if split not in tables:
        raise UserError(f"{source} has no split {split}; name one of {', '.join(tables)} with --data.split")
    return {"train": tables[split]}


def _checked(files: list[str]) -> list[str]:
    """Names of files such that `datasets` takes them as they are, not for patterns.

    Raises UserError for the first that is not what its name says.
    """
    for file in files:
        with open(check_fetched(Path(file)), "rb") as content:
            if file.lower().endswith(".parquet") and content.read(4) != b"PAR1":
                raise UserError(f"{file} is not a parquet file, though its name says so; fetch or write it again")
    return list(map(glob.escape, files))


def files_by_split(folder: Path, suffixes: Iterable[str], problems: Problems) -> tuple[str, dict[str, list[str]]]:
    """The first suffix that files in a folder have, and those of each split, by their names as `datasets` reads them.

    If no name says a split, all are for training; if some do, the others are added to `problems`.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns

    files = {
        end: [file for file in sorted(folder.rglob(f"*{end}")) if not file.name.startswith(".")] for end in suffixes
    }
    end = next(end for end in suffixes if files[end])
    own = {os.path.realpath(file): str(file) for file in files[end]}
    base = os.path.realpath(folder)
    pattern = glob.escape(base)
    by_name = DataFilesDict.from_patterns(get_data_patterns(pattern), base_path=pattern)
    splits = {str(name): [own[f] for f in map(os.path.realpath, some) if f in own] for name, some in by_name.items()}
    splits = {name: chosen for name, chosen in splits.items() if chosen} or {"train": list(own.values())}
    used = {file for chosen in splits.values() for file in chosen}
    for file in (file for some in files.values() for file in some if str(file) not in used):
        problems.add(str(file.relative_to(folder)), "is not used: the names of other files say which split they are")
    return end, splits


def _image(table: Any, row: int, source: Path) -> Image.Image:
    """The image of a row: encoded bytes, or a path, which may start at the data set's folder.

    Raises UserError for anything else, and what Pillow and the disk raise.
    """
    value = next(iter(table[row].values()))
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value))
    if isinstance(value, str) and "://" in value:
        raise UserError(f"{value} is a web address; download the image, and name its file")
    if isinstance(value, str):
        return Image.open((source if source.is_dir() else source.parent) / value)
    if value is None:
        raise UserError("the row has none")
    kind = type(value).__name__
    raise UserError(f"the column holds a {kind}, not the bytes or the name of an image file; see --data.image-column")
