"""A folder of images with captions beside them.

    metadata.jsonl or metadata.csv     rows of file_name and text, the Hub's imagefolder convention; text may be a list
    name.jpg with name.txt             one caption a line

Several rows about one image are several captions of it. Folders train, validation (or val) and test inside it are the
splits, if there are any.
"""

import csv
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from data.records import SPLIT_NAMES, Listing, Problems, Record, as_captions, printable
from unclip.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read(folder: Path, caption_column: str, problems: Problems) -> Listing:
    """The records of a folder. Raises UserError if it holds no captioned images."""
    folder = Path(os.path.abspath(folder))  # as files are compared by their whole names, and `..` may be in this one
    parts = [folder / name for name in SPLIT_NAMES if (folder / name).is_dir()]
    whole = _table(folder) is not None or not parts
    captions: dict[Path, list[str]] = {}  # several rows may be about one image
    for part in [folder] if whole else parts:
        found = (
            _from_table(folder, part, caption_column, problems) if _table(part) else _from_pairs(folder, part, problems)
        )
        for file, text in found:
            captions.setdefault(file, []).extend(text)
    if not whole:
        for file in _files(folder, SUFFIXES):
            if not any(file.is_relative_to(part) for part in parts):
                problems.add(str(file.relative_to(folder)), "lies outside of the folders of the splits")
    records = []
    for file, text in captions.items():
        state, name = file.stat(), file.relative_to(folder)
        split = SPLIT_NAMES.get(name.parts[0]) if parts else None
        opened, version = partial(Image.open, file), f"{state.st_mtime_ns} {state.st_size}"
        records.append(Record(printable(str(name)), opened, as_captions(text), split=split, version=version))
    if not records and not problems.found:
        raise UserError(
            f"{folder} holds no captioned images; expected metadata.jsonl or metadata.csv with file_name and "
            f"{caption_column}, or name.txt beside each name.jpg"
        )
    return Listing(records)


def is_one(folder: Path) -> bool:
    """Whether images with captions lie in a folder."""
    places = [folder, *(folder / name for name in SPLIT_NAMES)]
    pairs = {file.with_suffix("") for file in _files(folder, SUFFIXES)}
    return any(_table(place) for place in places) or any(f.with_suffix("") in pairs for f in _files(folder, {".txt"}))


Captioned = Iterator[tuple[Path, tuple[str, ...]]]
"""Files of images, with their captions."""


def _table(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _from_table(root: Path, folder: Path, column: str, problems: Problems) -> Captioned:
    table, named = _table(folder), set()
    for number, row in (_jsonl if table.suffix == ".jsonl" else _csv)(table, root, problems):
        where = f"{table.relative_to(root)}:{number}"
        file = Path(os.path.normpath(folder / str(row.get("file_name"))))  # links are followed wherever they lead
        named.add(file)
        if None in row:
            problems.add(where, "has more values than there are columns; quote captions with commas")
            continue
        if lacking := [name for name in ("file_name", column) if name not in row]:
            problems.add(where, f"has no {lacking[0]}; its columns are {', '.join(map(str, row))}")
            continue
        where, captions = f"{where} ({row['file_name']})", as_captions(row[column])
        if not captions:
            problems.add(where, "has no caption that is text")
        elif not file.is_relative_to(root):
            problems.add(where, "the file lies outside of the folder")
        elif not _is_file(file):
            problems.add(where, "the file is missing")
        else:
            yield file, captions
    for file in _files(folder, SUFFIXES):
        if file not in named:
            problems.add(str(file.relative_to(root)), f"is not named in {table.name}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _files(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def _jsonl(path: Path, root: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.relative_to(root)}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:  # also of bytes that are no UTF-8
            problems.add(where, f"is not JSON ({error})")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.add(where, "is no JSON object")


def _csv(path: Path, root: Path, problems: Problems) -> Iterator[tuple[int, dict[str | None, Any]]]:
    """Rows by their line; under None are the values for which there is no column."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)  # which minds a quote that is not closed
        rows = iter(reader)
        while True:
            begins = reader.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:  # the next row begins after the line where it gave up
                problems.add(f"{path.relative_to(root)}:{begins}", f"is not readable as CSV ({error})")
                continue
            yield reader.line_num, {name: value for name, value in row.items() if value is not None}


def _from_pairs(root: Path, folder: Path, problems: Problems) -> Captioned:
    texts = {file.with_suffix(""): file for file in _files(folder, {".txt"})}
    for file in _files(folder, SUFFIXES):
        name, text = str(file.relative_to(root)), texts.get(file.with_suffix(""))
        if text is None:
            problems.add(name, f"has no {file.stem}.txt beside it")
            continue
        try:
            captions = as_captions(text.read_text(encoding="utf-8-sig").split("\n"))
        except UnicodeDecodeError as error:
            problems.add(name, f"{text.name} is not UTF-8 text ({error.reason} at byte {error.start})")
            continue
        except OSError as error:
            problems.add(name, f"{text.name} cannot be read ({error.strerror})")
            continue
        if not captions:
            problems.add(name, f"{text.name} holds no caption")
        elif not _is_file(file):
            problems.add(name, "the file is missing")
        else:
            yield file, captions
    illustrated = {file.with_suffix("") for file in _files(folder, SUFFIXES)}
    for stem, text in texts.items():
        if stem not in illustrated:
            problems.add(str(text.relative_to(root)), "has no image beside it")
