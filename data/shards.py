"""Webdataset shards: tar files in which an image and its captions share a name up to its first dot.

    000.jpg with 000.txt     one caption per line
    000.jpg with 000.json    an object with the column of the captions
    000.jpg with 000.cls     the number of a class

The shards stay packed: only the places of their files are listed, and an image is read on demand.
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

from data.caption_values import as_captions
from data.hugging_face import group_files_by_split
from data.image_files import IMAGE_SUFFIXES
from data.image_folder import METADATA
from data.problems import Problems
from data.records import Columns, Listing, Record
from data.source_config import SourceConfig
from data.splits import SPLIT_NAMES
from data.table_rows import decode_noted_lines
from unclip.errors import UserError, reason
from unclip.image_opening import open_image
from unclip.store.files import check_fetched
from unclip.text import decode_text

SHARD_SUFFIX = ".tar"


class Place(NamedTuple):
    """The place of a file in a shard."""

    shard: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


Files = dict[str, Place]
"""The files of one sample, by their suffix: all that follows the first dot of the name."""


def read_shards(config: SourceConfig, problems: Problems) -> Listing:
    """The records of one shard, or of a folder of shards, whose names may say which split they are.

    Raises UserError for a file that is not an uncompressed tar file, and if nothing in it is an image.
    """
    path = Path(config.source)
    if path.is_file():
        shards_by_split = {"": [str(path)]}
    else:
        _, shards_by_split = group_files_by_split(path, (SHARD_SUFFIX,), problems)
    records = []
    image_count = 0
    for split_name, shards in shards_by_split.items():
        split = SPLIT_NAMES.get(split_name) if len(shards_by_split) > 1 else None
        for shard in map(Path, shards):
            status = shard.stat()
            version = f"{status.st_mtime_ns} {status.st_size}"
            for key, files in _list_samples(shard, problems).items():
                name = f"{os.path.relpath(shard, path if path.is_dir() else path.parent)}/{key}"
                image = _choose_image(files, name, config.columns, problems)
                if image is None:
                    continue
                image_count += 1
                captions = _read_captions(files, name, config.columns, problems)
                if captions:
                    opener = partial(_open_image, files[image])
                    records.append(Record(name, opener, captions, split=split, version=version))
    if not image_count:
        raise UserError(f"{path} holds no images; expected 000.jpg with 000.txt, 000.json or 000.cls, and so on")
    return Listing(records)


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder holds shards, and no images beside them."""
    suffixes = {file.suffix.lower() for file in folder.rglob("*")}
    return SHARD_SUFFIX in suffixes and not suffixes & IMAGE_SUFFIXES


def _list_samples(shard: Path, problems: Problems) -> dict[str, Files]:
    """The samples of a shard: files that share their name up to the first dot."""
    samples: dict[str, Files] = {}
    try:
        with tarfile.open(check_fetched(shard), "r:") as file:
            for member in _list_members(file, shard, problems):
                path = PurePosixPath(member.name)
                if path.name in METADATA:
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


def _list_members(file: tarfile.TarFile, shard: Path, problems: Problems) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file, as far as it is whole."""
    with contextlib.suppress(tarfile.TarError):  # the members before the damage are good
        yield from file
    file.fileobj.seek(file.offset)
    if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # a whole archive ends with zeros
        problems.add(shard.name, f"is cut off or damaged after {file.offset} bytes; what follows is lost")


def _choose_image(files: Files, name: str, columns: Columns, problems: Problems) -> str | None:
    """The suffix of a sample's image; None if it has none."""
    images = [suffix for suffix in files if f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    if not images:
        problems.add(name, f"has no image, only {', '.join(files)}")
    if columns.image in files:
        return columns.image
    for other in images[1:]:
        problems.add(
            f"{name}.{other}",
            f"is a second image, beside {images[0]}, as names end at their first dot; choose with --data.image-column",
        )
    return images[0] if images else None


def _read_captions(files: Files, name: str, columns: Columns, problems: Problems) -> tuple[str, ...]:
    """The captions of a sample. If there are none, the sample is added to `problems`."""
    value: Any = None
    try:
        content = json.loads(decode_text(files["json"].read_bytes())) if "json" in files else {}
        values = content if isinstance(content, dict) else {}
        text = next((suffix for suffix in (columns.caption, "txt", "cls") if suffix in files), None)
        if columns.caption in values and text != columns.caption:
            value = values[columns.caption]
        elif text:
            value = decode_noted_lines(files[text].read_bytes(), "text beside images", problems)
        elif values:
            problems.add(name, f"has no {columns.caption}; name one of {', '.join(values)} with --data.caption-column")
            return ()
    except (ValueError, RecursionError) as error:  # from JSON, or from text that is not Unicode
        problems.add(name, f"its caption is not readable ({reason(error)})")
        return ()
    captions = as_captions(value, problems)
    if not captions:
        problems.add(name, "has no caption that is text" if value else "has no .txt, .json or .cls with a caption")
    return captions


def _open_image(place: Place) -> Image.Image:
    return open_image(io.BytesIO(place.read_bytes()))
