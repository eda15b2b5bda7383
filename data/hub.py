"""Hugging Face data sets: by a local path (parquet, arrow, a saved data set), or by name from the Hub.

The tables stay on disk, memory-mapped; only the images that are asked for are read.
"""

import io
import os
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from data.records import SPLIT_NAMES, Listing, Problems, Record, as_captions, class_caption
from unclip.errors import UserError, reason

FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


def read(source: str, image_column: str, caption_column: str, split: str | None, problems: Problems) -> Listing:
    """The records, and the names of the classes where the caption column holds class labels.

    Raises UserError if there is no such data set, or no such column.
    """
    import datasets  # seconds to import, so only here

    records: list[Record] = []
    classes: tuple[str, ...] = ()
    tables = _open(source, split, problems)
    for name, table in tables.items():
        if len(tables) > 1 and name not in SPLIT_NAMES:
            why = f"its {len(table)} rows are not used; name a split with --data.split"
            problems.add(f"split {name}", why, len(table))
            continue
        for column, option in ((image_column, "image-column"), (caption_column, "caption-column")):
            if column not in table.column_names:
                raise UserError(
                    f"{source} has no column {column}; name one of {', '.join(table.column_names)} with --data.{option}"
                )
        feature = table.features[caption_column]
        if isinstance(feature, datasets.ClassLabel):
            classes = tuple(feature.names)
        several = getattr(feature, "feature", None)  # of a list: what it holds
        names = several.names if isinstance(several, datasets.ClassLabel) else None
        if isinstance(table.features[image_column], datasets.Image):
            table = table.cast_column(image_column, datasets.Image(decode=False))
        images = table.select_columns([image_column])
        for row, value in enumerate(table[caption_column]):
            if names:
                value = [class_caption(names[one]) for one in value or () if one in range(len(names))]
            label = value if classes else None
            known = label is None or label in range(len(classes))
            captions = as_captions(value if label is None else class_caption(classes[label]) if known else "")
            if captions:
                opened, version = partial(_image, images, row, Path(source)), f"{images._fingerprint} {row}"
                own = SPLIT_NAMES[name] if len(tables) > 1 else None
                records.append(Record(f"{name} {row}", opened, captions, label, own, version))
            else:
                problems.add(f"{name} {row}", "has no caption" if known else f"has the unknown class {label}")
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
    try:
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(source)
        elif path.is_file():
            found = datasets.load_dataset(FORMATS[path.suffix.lower()], data_files=source)
        elif path.is_dir():
            kind, files, unused = _files_by_split(path)
            found = datasets.load_dataset(kind, data_files=files)
            for file in unused:
                problems.add(
                    str(file.relative_to(path)), "is not used: the names of other files say which split they are"
                )
        else:
            found = datasets.load_dataset(source)
    except Exception as error:  # it raises what its readers and its network library raise
        raise UserError(f"{source} cannot be opened as a data set ({reason(error.__cause__ or error)})") from error
    tables = found if isinstance(found, dict) else {"train": found}
    if split is None:
        return tables
    if split not in tables:
        raise UserError(f"{source} has no split {split}; name one of {', '.join(tables)} with --data.split")
    return {"train": tables[split]}


def _files_by_split(folder: Path) -> tuple[str, dict[str, list[str]], list[Path]]:
    """The format of a folder's tables, the files of each split, by their names as `datasets` reads them, and the rest.

    If no name says a split, all are one.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns

    files = {
        end: [file for file in sorted(folder.rglob(f"*{end}")) if not file.name.startswith(".")] for end in FORMATS
    }
    end = next(end for end in FORMATS if files[end])
    own = {os.path.realpath(file): str(file) for file in files[end]}
    base = os.path.realpath(folder)
    by_name = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    splits = {str(name): [own[f] for f in map(os.path.realpath, some) if f in own] for name, some in by_name.items()}
    splits = {name: chosen for name, chosen in splits.items() if chosen} or {"train": list(own.values())}
    used = {file for chosen in splits.values() for file in chosen}
    return FORMATS[end], splits, [file for some in files.values() for file in some if str(file) not in used]


def _image(table: Any, row: int, source: Path) -> Image.Image:
    """The image of a row: encoded bytes, or a path, which may start at the data set's folder."""
    value = next(iter(table[row].values()))
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value))
    if isinstance(value, str):
        return Image.open((source if source.is_dir() else source.parent) / value)
    raise UserError(f"{type(value).__name__} is no image")
