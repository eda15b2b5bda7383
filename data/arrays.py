"""Images in one array, as pixel sprites are shared.

    NAME.npz    images (N, H, W), (N, H, W, C) or (N, C, H, W), and captions (N,), or labels (N,) with class_names
    NAME.npy    the images; beside it NAME.txt, one caption per line, or NAME_labels.npy with NAME_classes.txt

Pixels are whole numbers in 0 .. 255, floats in 0 .. 1 or in 0 .. 255, or nothing but 0 and 1. Labels are class numbers
or one-hot rows; --data.class-names names the classes where the file does not.
"""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data.archives import check_unpacked_size
from data.caption_values import as_captions
from data.class_captions import class_caption
from data.problems import Problems
from data.records import Listing, Record, file_version
from data.source_config import SourceConfig
from data.table_rows import decode_noted_lines
from unclip.errors import UserError, quantity, reason
from unclip.text import decode_text

MAGIC = {".npz": b"PK", ".npy": b"\x93NUMPY"}
"""The first bytes of each kind of file."""


class Arrays(NamedTuple):
    """The content of a file."""

    images: np.ndarray
    captions: list[Any] | None = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()


def read_arrays(config: SourceConfig, problems: Problems) -> Listing:
    """The records and the names of the classes. Raises UserError for arrays that do not go together."""
    path = Path(config.source)
    suffix = path.suffix.lower()
    with open(path, "rb") as file:
        if file.read(len(MAGIC[suffix])) != MAGIC[suffix]:
            raise UserError(f"{path} is not what numpy writes as {path.suffix}; write it again, or fetch it again")
    try:
        arrays = _load_npz(path) if suffix == ".npz" else _load_npy(path, problems)
        images = _as_bytes(path, arrays.images, problems)
        _check_lengths(path, arrays)
    except UserError:
        raise
    except Exception as error:  # numpy's, for a damaged file, other types, or Python objects, which could run code
        why = reason(error)
        if "allow_pickle" in why:
            why = "it holds Python objects; save text as np.array(captions, str), images as one array of numbers"
        raise UserError(f"{path} is not readable as arrays of numbers and strings ({why})") from error
    version = f"{path.resolve()} {file_version(path)}"
    records = []
    for row, image in enumerate(images):
        label = None if arrays.labels is None else int(arrays.labels[row])
        value = class_caption(arrays.class_names[label]) if arrays.captions is None else arrays.captions[row]
        captions = as_captions(value, problems)
        if captions:
            records.append(Record(f"row {row}", partial(Image.fromarray, image), captions, label, version=version))
        else:
            problems.add(f"row {row}", "has no caption that is text")
    height, width = images.shape[1:3]
    return Listing(records, arrays.class_names, height if height == width else None)


def _load_npz(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        check_unpacked_size(path, sum(member.file_size for member in archive.infolist()))
    with np.load(path) as file:
        if "images" not in file or not ("captions" in file or "labels" in file):
            raise UserError(
                f"{path} holds {', '.join(file.files[:9]) or 'nothing'}; expected images with captions, or with labels "
                "and class_names"
            )
        captions = _as_text(file["captions"]) if "captions" in file else None
        if {"labels", "class_names"} <= set(file.files):
            class_names = tuple(map(str, _as_text(file["class_names"])))
            return Arrays(file["images"], captions, _as_class_numbers(file["labels"]), class_names)
        if captions is None:
            captions = _as_class_numbers(file["labels"]).tolist()
        return Arrays(file["images"], captions)


def _load_npy(path: Path, problems: Problems) -> Arrays:
    captions, labels, classes = (path.with_name(path.stem + end) for end in (".txt", "_labels.npy", "_classes.txt"))
    images = np.load(path)
    if captions.is_file():
        lines = decode_noted_lines(captions.read_bytes(), captions.name, problems)
        return Arrays(images, lines[:-1] if lines[-1] == "" else lines)
    if labels.is_file() and classes.is_file():
        lines = decode_noted_lines(classes.read_bytes(), classes.name, problems)
        class_names = tuple(line.strip() for line in lines if line.strip())
        return Arrays(images, None, _as_class_numbers(np.load(labels)), class_names)
    if labels.is_file():
        return Arrays(images, _as_class_numbers(np.load(labels)).tolist())
    raise UserError(f"{path} has neither {captions.name} nor {labels.name} with {classes.name} beside it")


def _check_lengths(path: Path, arrays: Arrays) -> None:
    """Raise UserError if there are not as many captions or labels as images, or labels without a class."""
    labels = arrays.labels
    for kind, values in (("caption", arrays.captions), ("label", labels)):
        if values is not None and len(values) != len(arrays.images):
            raise UserError(f"{path} has {quantity(len(arrays.images), 'image')}, but {quantity(len(values), kind)}")
    if labels is not None and (labels.min() < 0 or labels.max() >= len(arrays.class_names)):
        raise UserError(
            f"{path} has labels {labels.min()} .. {labels.max()}, but {quantity(len(arrays.class_names), 'class name')}"
        )


def _as_text(values: np.ndarray) -> list[Any]:
    """The strings of an array, bytes decoded; numbers stay numbers, which `as_captions` takes too."""
    return [decode_text(value) for value in values.tolist()] if values.dtype.kind == "S" else values.tolist()


def _as_class_numbers(labels: np.ndarray) -> np.ndarray:
    """Class numbers (N,) from numbers or one-hot rows. Raises ValueError for other numbers."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise ValueError("rows of labels are not one-hot")
        return labels.argmax(axis=1)
    if not (labels.reshape(-1) == labels.reshape(-1).astype(np.int64)).all():
        raise ValueError("labels are not whole numbers")
    return labels.reshape(-1).astype(np.int64)


def _as_bytes(path: Path, images: np.ndarray, problems: Problems) -> np.ndarray:
    """Pixels as uint8 (N, H, W) or (N, H, W, 3 or 4). Raises UserError for other shapes and ranges."""
    shape = images.shape
    if images.ndim == 4 and images.shape[-1] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (3, 4)) or 0 in images.shape:
        raise UserError(f"{path} has images of shape {shape}; expected (N, H, W), or with 1, 3 or 4 channels")
    low = images.min()
    high = images.max()
    are_floats = np.issubdtype(images.dtype, np.floating)
    if are_floats and not np.isfinite([low, high]).all():
        raise UserError(f"{path} has images with NaN or infinity in them; replace those, or leave such images out")
    if not (low >= 0 and high <= 255) or images.dtype.kind not in "buif":
        raise UserError(
            f"{path} has images of {images.dtype} in {low} .. {high}; expected 0 .. 255, or floats in 0 .. 1"
        )
    if high <= 1 and not are_floats:
        problems.note("bits", "its images hold nothing but 0 and 1, which are taken for black and white")
    if high <= 1:
        return np.round(images * 255.0).astype(np.uint8)
    if are_floats and high < 128 and (images % 1).any():  # the range cannot be told
        raise UserError(f"{path} has images of floats in {low} .. {high}; scale them to 0 .. 255, or to 0 .. 1")
    return np.ascontiguousarray(np.round(images) if are_floats else images, dtype=np.uint8)
