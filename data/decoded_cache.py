"""Decoded images in a file, for data sets that are too large for memory."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data import paths
from data.records import Record
from unclip.errors import UserError, reason
from unclip.store.files import (
    file_sha256,
    make_folder,
    partial_name,
    read_record,
    remove_leftovers,
    write_record,
)

Errors = dict[int, str]
"""Why an image cannot be read, by the index of its record."""


def open_decoded(
    shape: tuple[int, ...], name: str, records: Sequence[Record], fit: str, fill: Callable[[np.ndarray], Errors]
) -> tuple[np.ndarray, Errors]:
    """Open the file of decoded images uint8 `shape`; `fill` decodes them into it if there is none, or a damaged one.

    The file's name depends on the records' names and versions, so a changed image is decoded again.
    """
    key = hashlib.sha256(json.dumps([shape, name, fit, [(r.name, r.version) for r in records]]).encode())
    path = paths.CACHE / f"images-{key.hexdigest()[:16]}.npy"
    notes = path.with_suffix(".json")
    make_folder(paths.CACHE)
    remove_leftovers(paths.CACHE)
    errors = _read_intact(path, notes)
    if errors is None:
        temporary = partial_name(path)
        try:
            images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            errors = fill(images)
            images.flush()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        write_record(notes, {"sha256": file_sha256(path), "bad": {str(row): why for row, why in errors.items()}})
    return np.load(path, mmap_mode="c"), errors  # "c": torch needs writable memory; the file itself never changes


def _read_intact(path: Path, notes: Path) -> Errors | None:
    """The errors noted beside a file of images; None if the file is missing or has changed."""
    if not (notes.is_file() and path.is_file()):
        return None
    try:
        record = read_record(notes)
        if record["sha256"] == file_sha256(path):
            return {int(row): why for row, why in record["bad"].items()}
        problem = f"{path} has changed"
    except (UserError, KeyError) as error:
        problem = reason(error)
    print(f"{problem}: decoding the images again")
    return None
