"""Hugging Face data sets: by a local path (parquet, arrow, a saved data set), or by name from the Hub.

The tables stay on disk, memory-mapped; only the images that are asked for are read.
"""

import io
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
    tables = _open(source, split)
    for name, table in tables.items():
        if len(tables) > 1 and name not in SPLIT_NAMES:
            problems.add(f"split {name}", f"its {len(table)} rows are not used; name a split with --data.split")
            continue
        for column, option in ((image_column, "image-column"), (caption_column, "caption-column")):
            if column not in table.column_names:
                raise UserError(
                    f"{source} has no column {column}; name one of {', '.join(table.column_names)} with --data.{option}"
                )
        feature = table.features[caption_column]
        if isinstance(feature, datasets.ClassLabel):
            classes = tuple(feature.names)
        if isinstance(table.features[image_column], datasets.Image):
            table = table.cast_column(image_column, datasets.Image(decode=False))
        images = table.select_columns([image_column])
        for row, value in enumerate(table[caption_column]):
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


def _open(source: str, split: str | None) -> dict[str, Any]:
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
            kind = next(FORMATS[end] for end in FORMATS if any(path.rglob(f"*{end}")))
            found = datasets.load_dataset(kind, data_dir=source)
        else:
            found = datasets.load_dataset(source)
    except Exception as error:  # it raises what its readers and its network library raise
        raise UserError(f"{source} cannot be opened as a data set ({reason(error)})") from error
    tables = found if isinstance(found, dict) else {"train": found}
    if split is None:
        return tables
    if split not in tables:
        raise UserError(f"{source} has no split {split}; name one of {', '.join(tables)} with --data.split")
    return {"train": tables[split]}


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
