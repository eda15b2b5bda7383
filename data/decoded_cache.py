"""Decoded images in a file, for data sets that are too large for memory."""

import json
import shutil
from collections.abc import Callable, Sequence

import numpy as np

from data import paths
from data.records import Record
from unclip.store.array_files import array_cache_damage, map_array_cache, new_array_cache
from unclip.store.checksums import sha256
from unclip.store.files import make_folder, remove_leftovers

READING = 2
"""Changes when a file is read as other pixels than before, so that no cache of earlier versions is used."""
Errors = dict[int, str]
"""Why an image cannot be read, by the index of its record."""


def open_decoded(
    shape: tuple[int, ...], name: str, records: Sequence[Record], fit: str, fill: Callable[[np.ndarray], Errors]
) -> tuple[np.ndarray, Errors]:
    """Open the cache of decoded images uint8 `shape`; `fill` decodes them into it if there is none, or a damaged one.

    The cache's name depends on the records' names and versions, so a changed image is decoded again.
    """
    key = json.dumps([READING, shape, name, fit, [(record.name, record.version) for record in records]])
    folder = paths.CACHE / f"images-{sha256(key.encode())[:16]}"
    make_folder(paths.CACHE)
    remove_leftovers(paths.CACHE)
    if folder.exists() and (damage := array_cache_damage(folder)):
        print(f"{folder} is damaged ({damage}): decoding the images again")
        shutil.rmtree(folder)
    if not folder.exists():
        with new_array_cache(folder, {"images": (np.uint8, shape)}) as cache:
            errors = fill(cache.arrays["images"])
            cache.notes["errors"] = list(errors.items())
    cache = map_array_cache(folder)
    return cache.arrays["images"], dict(cache.notes["errors"])
