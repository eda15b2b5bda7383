"""From records to pixels: open, fit and decode images, in order, on all cores."""

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.decoded_cache import Errors, open_decoded
from data.problems import Problems
from data.records import Record
from unclip.fitting import Fit
from unclip.image_opening import explain_unreadable
from unclip.pixels import read_pixels

MEMORY = 2**30
"""Bytes of decoded images that are held in memory; more are decoded into a file and read on demand."""
WAITING = 64
"""Images that are decoded ahead, per worker."""

# Pillow warns of large images and of odd metadata. Images that are really broken are reported as problems.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(record: Record, size: int, channels: int, fit: Fit) -> np.ndarray:
    """Decode a record's image: uint8 (channels, size, size), see `unclip.pixels.read_pixels`.

    Raises what Pillow raises for a broken image, or a UserError.
    """
    with record.open() as image:
        pixels = read_pixels(image, size, channels, fit)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode_images(records: Sequence[Record], size: int, channels: int, fit: Fit) -> Iterator[np.ndarray | str]:
    """Each record's image, or the reason why it cannot be read; in order, decoded ahead on all cores."""

    def attempt(record: Record) -> np.ndarray | str:
        try:
            return decode_image(record, size, channels, fit)
        except Exception as error:  # Pillow raises many kinds for broken files
            return explain_unreadable(error)

    workers = os.cpu_count() or 1
    rest = iter(records)
    with ThreadPoolExecutor(workers) as pool:  # threads: Pillow releases the interpreter's lock while it decodes
        waiting = deque(pool.submit(attempt, record) for record in islice(rest, WAITING * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(attempt, record) for record in islice(rest, 1))


def filter_readable(records: Sequence[Record], size: int, channels: int, fit: Fit, problems: Problems) -> list[Record]:
    """The records whose images can be decoded; the others are added to `problems`."""
    readable = []
    for record, result in zip(records, decode_images(records, size, channels, fit), strict=True):
        if isinstance(result, str):
            problems.add(record.name, result)
        else:
            readable.append(record)
    return readable


def collect_images(
    name: str, records: Sequence[Record], size: int, channels: int, fit: Fit, problems: Problems
) -> tuple[Tensor, list[Record]]:
    """Decode all records: images uint8 (N, channels, size, size), and the N records that could be read.

    The others are added to `problems`. Up to `MEMORY` bytes of images are held in memory. More are decoded once into a
    file in data/cache, from which batches are read; both give the same batches.
    """
    shape = (len(records), channels, size, size)
    if np.prod(shape, dtype=np.int64) <= MEMORY:
        images = np.empty(shape, np.uint8)
        errors = _fill(images, name, records, fit)
    else:
        images, errors = open_decoded(shape, name, records, fit, lambda array: _fill(array, name, records, fit))
    for row, why in errors.items():
        problems.add(records[row].name, why)
    readable = [record for row, record in enumerate(records) if row not in errors]
    return torch.from_numpy(images[: len(readable)]), readable


def _fill(images: np.ndarray, name: str, records: Sequence[Record], fit: Fit) -> Errors:
    """Decode records into the first rows of `images`. Returns why the unreadable ones are."""
    errors: Errors = {}
    count = 0
    _, channels, size, _ = images.shape
    results = decode_images(records, size, channels, fit)
    for row, result in enumerate(tqdm(results, f"decoding {name}", len(records), leave=False, disable=None)):
        if isinstance(result, str):
            errors[row] = result
        else:
            images[count] = result
            count += 1
    return errors


def common_size(records: Sequence[Record], fit: Fit, largest: int) -> int | None:
    """Pixels per side if all images have one size of at most `largest`; else None.

    For oblong images this is the side that `fit` neither cuts nor fills. Only the files' headers are read.
    """
    common = None
    for record in records:
        try:
            with record.open() as image:
                size = image.size
        except Exception:  # unreadable images are reported where they are decoded
            continue
        common = common or size
        if size != common or max(size) > largest:
            return None
    if common is None:
        return None
    return min(common) if fit == "crop" else max(common)
