"""Images in one array, as pixel sprites are shared.

    NAME.npz    images (N, H, W), (N, H, W, C) or (N, C, H, W), and captions (N,), or labels (N,) with class_names
    NAME.npy    the images; beside it NAME.txt, one caption per line, or NAME_labels.npy with NAME_classes.txt

Pixels are whole numbers in 0 .. 255, floats in 0 .. 1 or in 0 .. 255, or nothing but 0 and 1. Labels are numbers, which
--data.class-names puts into words where the file does not, or one-hot rows.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data.caption_values import as_captions
from data.class_captions import class_caption
from data.problems import Problems
from data.records import Listing, Record
from data.tables import read_lines
from unclip.errors import UserError, reason

MAGIC = {".npz": b"PK", ".npy": b"\x93NUMPY"}
"""How their files begin."""


class Arrays(NamedTuple):
    images: np.ndarray
    captions: list[Any] | None = None
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()


def read(path: Path, problems: Problems) -> Listing:
    """The records and the names of the classes. Raises UserError for arrays that do not go together."""
    with open(path, "rb") as file:
        if not file.read(len(MAGIC[path.suffix.lower()])) == MAGIC[path.suffix.lower()]:
            raise UserError(f"{path} is not what numpy writes as {path.suffix}; write it again, or fetch it again")
    try:
        images, captions, labels, names = _npz(path) if path.suffix.lower() == ".npz" else _npy(path, problems)
        images = _pixels(path, images, problems)
        for what, values in (("captions", captions), ("labels", labels)):
            if values is not None and len(values) != len(images):
                raise UserError(f"{path} has {len(images)} images, but {len(values)} {what}")
        if labels is not None and (labels.min() < 0 or labels.max() >= len(names)):
            raise UserError(f"{path} has labels {labels.min()} .. {labels.max()}, but {len(names)} class names")
    except UserError:
        raise
    except Exception as error:  # numpy's, of a damaged file, other types, or Python objects, which could run code
        why = reason(error)
        if "allow_pickle" in why:
            why = "it holds Python objects; save text as np.array(captions, str), images as one array of numbers"
        raise UserError(f"{path} is not readable as arrays of numbers and strings ({why})") from error
    state, records = path.stat(), []
    version = f"{path.resolve()} {state.st_mtime_ns} {state.st_size}"
    for row, image in enumerate(images):
        label = None if labels is None else int(labels[row])
        text = as_captions(class_caption(names[label]) if captions is None else captions[row], problems)
        if text:
            records.append(Record(f"row {row}", partial(Image.fromarray, image), text, label, version=version))
        else:
            problems.add(f"row {row}", "has no caption that is text")
    height, width = images.shape[1:3]
    return Listing(records, names, height if height == width else None)


def _npz(path: Path) -> Arrays:
    with np.load(path) as file:
        if "images" not in file or not ("captions" in file or "labels" in file):
            raise UserError(
                f"{path} holds {', '.join(file.files[:9]) or 'nothing'}; expected images with captions, or with labels "
                "and class_names"
            )
        captions = _strings(file["captions"]) if "captions" in file else None
        if {"labels", "class_names"} <= set(file.files):
            return Arrays(
                file["images"], captions, _numbers(file["labels"]), tuple(map(str, _strings(file["class_names"])))
            )
        return Arrays(file["images"], _numbers(file["labels"]).tolist() if captions is None else captions)


def _npy(path: Path, problems: Problems) -> Arrays:
    captions, labels, names = (path.with_name(path.stem + end) for end in (".txt", "_labels.npy", "_classes.txt"))
    images = np.load(path)
    if captions.is_file():
        lines = read_lines(captions.read_bytes(), captions.name, problems)
        return Arrays(images, lines[:-1] if lines[-1] == "" else lines)
    if labels.is_file() and names.is_file():
        lines = read_lines(names.read_bytes(), names.name, problems)
        return Arrays(images, None, _numbers(np.load(labels)), tuple(line.strip() for line in lines if line.strip()))
    if labels.is_file():
        return Arrays(images, _numbers(np.load(labels)).tolist())
    raise UserError(f"{path} has neither {captions.name} nor {labels.name} with {names.name} beside it")


def _strings(values: np.ndarray) -> list[Any]:
    """What an array holds, bytes as text; numbers stay numbers, which `as_captions` knows."""
    return (np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values).tolist()


def _numbers(labels: np.ndarray) -> np.ndarray:
    """(N,) of class numbers or of one-hot rows. Raises ValueError for other numbers."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise ValueError("rows of labels are not one-hot")
        return labels.argmax(axis=1)
    if not (labels.reshape(-1) == labels.reshape(-1).astype(np.int64)).all():
        raise ValueError("labels are not whole numbers")
    return labels.reshape(-1).astype(np.int64)


def _pixels(path: Path, images: np.ndarray, problems: Problems) -> np.ndarray:
    """uint8 (N, H, W) or (N, H, W, 3 or 4). Raises UserError for other shapes and ranges."""
    given = images.shape
    if images.ndim == 4 and images.shape[-1] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (3, 4)) or 0 in images.shape:
        raise UserError(f"{path} has images of shape {given}; expected (N, H, W), or with 1, 3 or 4 channels")
    low, high = images.min(), images.max()
    floats = np.issubdtype(images.dtype, np.floating)
    if floats and not np.isfinite([low, high]).all():
        raise UserError(f"{path} has images with NaN or infinity in them; replace those, or leave such images out")
    if not (low >= 0 and high <= 255) or images.dtype.kind not in "buif":
        raise UserError(
            f"{path} has images of {images.dtype} in {low} .. {high}; expected 0 .. 255, or floats in 0 .. 1"
        )
    if high <= 1 and not floats:
        problems.note("bits", "its images hold nothing but 0 and 1, which are taken for black and white")
    if high <= 1:
        return np.round(images * 255.0).astype(np.uint8)
    if floats and high < 128 and (images % 1).any():  # it may be any range
        raise UserError(f"{path} has images of floats in {low} .. {high}; scale them to 0 .. 255, or to 0 .. 1")
    return np.ascontiguousarray(np.round(images) if floats else images, dtype=np.uint8)
