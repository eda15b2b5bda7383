"""Webdataset shards: tar files in which an image and its captions share a name up to its first dot.

    000.jpg with 000.txt or .caption   one caption per line
    000.jpg with 000.json              an object with the column of the captions
    000.jpg with 000.cls               the number of a class

Where names have more dots, a.1.jpg belongs to a.1.txt, if there is one. img2dataset writes a .parquet and a _stats.json
beside each shard, which hold no more than the shard does.

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
from data.file_patterns import match_files
from data.folder_contents import METADATA
from data.folder_files import is_hidden_name, list_files
from data.hugging_face import FORMATS, group_files_by_split
from data.image_files import IMAGE_SUFFIXES
from data.problems import Problems
from data.records import Columns, Listing, Record, file_version
from data.source_config import SourceConfig
from data.splits import SPLIT_NAMES
from data.table_rows import decode_noted_lines
from unclip.errors import UserError, printable, reason
from unclip.image_opening import open_image
from unclip.store.files import check_fetched
from unclip.text import decode_text

SHARD_SUFFIX = ".tar"
TEXT_SUFFIXES = ("txt", "caption", "cls")
LARGEST_TEXT = 2**22
"""Bytes of a member with captions; a larger one holds other things."""


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
    folder = path if path.is_dir() else path.parent
    shards_by_split = group_files_by_split(_list_shards(path, problems), folder, problems)
    records = []
    image_count = 0
    for split_name, shards in shards_by_split.items():
        split = SPLIT_NAMES.get(split_name) if len(shards_by_split) > 1 else None
        for shard in map(Path, shards):
            version = file_version(shard)
            for key, files in list_samples(shard, problems).items():
                name = printable(f"{os.path.relpath(shard, folder)}/{key}")
                image = choose_image(files, name, config.columns, problems)
                if image is None:
                    continue
                image_count += 1
                captions = read_captions(files, name, config.columns, problems)
                if captions:
                    opener = partial(_open_image, files[image])
                    records.append(Record(name, opener, captions, split=split, version=version))
    if not image_count:
        why = "".join(f" ({name} {why})" for name, why in list(problems.rows)[:1])
        raise UserError(f"{path} holds no images{why}; expected 000.jpg with 000.txt, 000.json or 000.cls, and so on")
    return Listing(records)


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder holds shards, no images beside them, and no tables but those of the shards."""
    files, _ = list_files(folder, {SHARD_SUFFIX, *FORMATS, *IMAGE_SUFFIXES}, {SHARD_SUFFIX, *FORMATS, *IMAGE_SUFFIXES})
    shards = {file.with_suffix("") for file in files if file.suffix.lower() == SHARD_SUFFIX}
    others = {file.with_suffix("") for file in files if file.suffix.lower() in FORMATS}
    has_images = any(file.suffix.lower() in IMAGE_SUFFIXES for file in files)
    return bool(shards) and others <= shards and not has_images


def _list_shards(path: Path, problems: Problems) -> list[Path]:
    """The shards that a path or a pattern names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        return match_files(str(path))
    files, refused = list_files(path, {SHARD_SUFFIX}, {SHARD_SUFFIX})
    for file, why in refused.items():
        problems.add(str(file.relative_to(path)), why)
    return files


def list_samples(shard: Path, problems: Problems) -> dict[str, Files]:
    """The samples of a shard: files that share their name up to the first dot, see `_split_dotted`."""
    samples: dict[str, Files] = {}
    try:
        with tarfile.open(check_fetched(shard), "r:") as file:
            for member in _list_members(file, shard, problems):
                path = PurePosixPath(member.name)
                if path.name in METADATA:
                    raise UserError(f"{shard} is a packed folder with {path.name}; unpack it, and give the folder")
                stem, _, suffix = path.name.partition(".")
                if any(map(is_hidden_name, path.parts)):
                    continue
                if member.islnk() or member.issym() or member.issparse():
                    problems.add(f"{shard.name}/{member.name}", "is a link or a file with holes, which is not read")
                elif member.isreg():
                    place = Place(shard, member.offset_data, member.size)
                    samples.setdefault(str(path.parent / stem), {})[suffix.lower()] = place
    except UserError:
        raise
    except Exception as error:  # a damaged header also raises errors of numbers and of text
        raise UserError(
            f"{shard} is not an uncompressed tar file ({reason(error)}); unpack it, if it is a compressed one"
        ) from error
    return {key: files for stem, files in samples.items() for key, files in _split_dotted(stem, files).items()}


def _split_dotted(stem: str, files: Files) -> dict[str, Files]:
    """Several samples whose names are equal up to the first dot: a.1.jpg with a.1.txt, a.2.jpg with a.2.txt.

    Other dotted names stay together: 0.rgb.jpg, 0.depth.png and 0.json are one sample.
    """
    by_prefix: dict[str, Files] = {}
    for suffix, place in files.items():
        prefix, _, last = suffix.rpartition(".")
        by_prefix.setdefault(prefix, {})[last] = place
    pairs = {prefix for prefix, part in by_prefix.items() if prefix and _has_image(part) and _has_text(part)}
    if not pairs:
        return {stem: files}
    if "" not in by_prefix:
        pairs = set(by_prefix)
    rest = {suffix: place for suffix, place in files.items() if suffix.rpartition(".")[0] not in pairs}
    samples = {f"{stem}.{prefix}": part for prefix, part in by_prefix.items() if prefix in pairs}
    return samples | ({stem: rest} if rest else {})


def _has_image(files: Files) -> bool:
    return any(f".{suffix}" in IMAGE_SUFFIXES for suffix in files)


def _has_text(files: Files) -> bool:
    return not files.keys().isdisjoint((*TEXT_SUFFIXES, "json"))


def _list_members(file: tarfile.TarFile, shard: Path, problems: Problems) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file, as far as it is whole."""
    size = shard.stat().st_size
    end = 0
    with contextlib.suppress(Exception):  # the members before the damage are good
        for member in file:
            if member.isreg() and not 0 <= member.size <= size - member.offset_data:
                break
            end = file.offset
            yield member
    with open(shard, "rb") as content:
        content.seek(end)
        if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # a whole archive ends with zeros
            problems.add(shard.name, f"is cut off or damaged after {end} bytes; what follows is lost")


def choose_image(files: Files, name: str, columns: Columns, problems: Problems) -> str | None:
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


def read_captions(files: Files, name: str, columns: Columns, problems: Problems) -> tuple[str, ...]:
    """The captions of a sample. If there are none, the sample is added to `problems`."""
    value: Any = None
    try:
        content = json.loads(decode_text(_read_text(files["json"]))) if "json" in files else {}
        values = content if isinstance(content, dict) else {}
        text = next((suffix for suffix in (columns.caption, *TEXT_SUFFIXES) if suffix in files), None)
        if columns.caption in values and text != columns.caption:
            value = values[columns.caption]
        elif text:
            value = decode_noted_lines(_read_text(files[text]), "text beside images", problems)
        elif values:
            value = values[columns.find_caption("its .json", values, problems)]
    except UserError as error:
        problems.add(name, str(error))
        return ()
    except (ValueError, RecursionError) as error:  # from JSON, or from text that is not Unicode
        problems.add(name, f"its caption is not readable ({reason(error)})")
        return ()
    captions = as_captions(value, problems)
    if not captions:
        problems.add(name, "has no caption that is text" if value else "has no .txt, .json or .cls with a caption")
    return captions


def _read_text(place: Place) -> bytes:
    if place.size > LARGEST_TEXT:
        raise UserError(f"it has more than {LARGEST_TEXT // 2**20} MB of text, which are no captions")
    return place.read_bytes()


def _open_image(place: Place) -> Image.Image:
    return open_image(io.BytesIO(place.read_bytes()))
