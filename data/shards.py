"""Webdataset shards: tar files in which an image and what is said of it share a name up to its first dot.

    000.jpg with 000.txt     one caption per line
    000.jpg with 000.json    an object with the column of the captions
    000.jpg with 000.cls     the number of a class

The shards stay packed: only where things lie in them is listed, and an image is read when it is asked for.
"""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from data import folder
from data import hugging_face as hub
from data.caption_values import as_captions
from data.problems import Problems
from data.records import Columns, Listing, Record
from data.splits import SPLIT_NAMES
from data.tables import read_lines
from unclip.errors import UserError, reason
from unclip.store.files import check_fetched

SUFFIX = ".tar"


class Place(NamedTuple):
    """Where a file lies in a shard."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def read(path: Path, columns: Columns, problems: Problems) -> Listing:
    """The records of one shard, or of a folder of them, whose names may say which split they are.

    Raises UserError for what is not an uncompressed tar file, and where nothing in it is an image.
    """
    splits = {"": [str(path)]} if path.is_file() else hub.files_by_split(path, (SUFFIX,), problems)[1]
    records, images = [], 0
    for split, shards in splits.items():
        for shard in map(Path, shards):
            for key, members in _samples(shard, problems).items():
                name = f"{os.path.relpath(shard, path if path.is_dir() else path.parent)}/{key}"
                if not (image := _image_of(members, name, columns, problems)):
                    continue
                images += 1
                captions = _captions(members, name, columns, problems)
                if captions:
                    opened, state = partial(_open, members[image]), shard.stat()
                    version = f"{state.st_mtime_ns} {state.st_size}"
                    own = SPLIT_NAMES.get(split) if len(splits) > 1 else None
                    records.append(Record(name, opened, captions, split=own, version=version))
    if not images:
        raise UserError(f"{path} holds no images; expected 000.jpg with 000.txt, 000.json or 000.cls, and so on")
    return Listing(records)


def is_one(path: Path) -> bool:
    """Whether a folder holds shards, and no images beside them."""
    suffixes = {file.suffix.lower() for file in path.rglob("*")}
    return SUFFIX in suffixes and not suffixes & folder.SUFFIXES


def _samples(shard: Path, problems: Problems) -> dict[str, dict[str, Place]]:
    """The files of a shard by name up to the first dot, and by what follows it."""
    samples: dict[str, dict[str, Place]] = {}
    try:
        with tarfile.open(check_fetched(shard), "r:") as file:
            for member in _members(file, shard, problems):
                path = PurePosixPath(member.name)
                if path.name in folder.METADATA:
                    raise UserError(f"{shard} is a packed folder with {path.name}; unpack it, and give the folder")
                stem, _, suffix = path.name.partition(".")
                if member.isfile() and stem:
                    place = Place(shard, member.offset_data, member.size)
                    samples.setdefault(str(path.parent / stem), {})[suffix.lower()] = place
    except tarfile.TarError as error:
        raise UserError(
            f"{shard} is not an uncompressed tar file ({reason(error)}); unpack it, if it is a compressed one"
        ) from error
    return samples


def _members(file: tarfile.TarFile, shard: Path, problems: Problems) -> Iterator[tarfile.TarInfo]:
    with contextlib.suppress(tarfile.TarError):  # what comes before is good
        yield from file
    file.fileobj.seek(file.offset)
    if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # an archive ends with zeros
        problems.add(shard.name, f"is cut off or damaged after {file.offset} bytes; what follows is lost")


def _image_of(members: dict[str, Place], name: str, columns: Columns, problems: Problems) -> str | None:
    """Which of the files of one name is the image."""
    images = [suffix for suffix in members if f".{suffix.rpartition('.')[2]}" in folder.SUFFIXES]
    chosen = columns.image if columns.image in members else next(iter(images), None)
    if not images:
        problems.add(name, f"has no image, only {', '.join(members)}")
    for other in images:
        if other != chosen and columns.image not in members:
            problems.add(
                f"{name}.{other}",
                f"is a second image, beside {chosen}, as names end at their first dot; choose with --data.image-column",
            )
    return chosen


def _captions(members: dict[str, Place], name: str, columns: Columns, problems: Problems) -> tuple[str, ...]:
    """The captions of an image; none where there are none, which is added to `problems`."""
    said: Any = None
    try:
        content = json.loads(members["json"].read()) if "json" in members else {}
        keys = content if isinstance(content, dict) else {}
        text = next((suffix for suffix in (columns.caption, "txt", "cls") if suffix in members), None)
        if columns.caption in keys and text != columns.caption:
            said = keys[columns.caption]
        elif text:
            said = read_lines(members[text].read(), "text beside images", problems)
        elif keys:
            problems.add(name, f"has no {columns.caption}; name one of {', '.join(keys)} with --data.caption-column")
            return ()
    except (ValueError, RecursionError) as error:  # of JSON, and of text that is not Unicode
        problems.add(name, f"its caption is not readable ({reason(error)})")
        return ()
    if not (captions := as_captions(said, problems)):
        problems.add(name, "has no caption that is text" if said else "has no .txt, .json or .cls with a caption")
    return captions


def _open(place: Place) -> Image.Image:
    return Image.open(io.BytesIO(place.read()))
