"""Arrays on disk: caches whose .npy files are mapped into memory, and .npz files for whoever wants the numbers.

A cache is a folder with one NAME.npy per array and arrays.json: a record with the SHA-256 of each, and notes. The
folder appears whole, or not at all.
"""

import contextlib
import errno
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unclip.errors import UserError, reason
from unclip.store.checksums import file_sha256
from unclip.store.files import flush_folder, make_folder, partial_name, write_atomically
from unclip.store.sealed_json import read_record, write_record

RECORD = "arrays.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors by which the system says that a file is too large for its disk."""
CHUNK = 2**20
"""Bytes that are written at once."""
Layout = dict[str, tuple[type[np.generic], tuple[int, ...]]]
"""The arrays of a cache: name -> type and shape."""


class CachedArrays(NamedTuple):
    """Arrays that are mapped into memory: only the rows that are used are read."""

    arrays: dict[str, np.ndarray]
    notes: dict[str, Any]
    """Whatever JSON else belongs to them."""


@contextlib.contextmanager
def new_array_cache(folder: Path, layout: Layout) -> Iterator[CachedArrays]:
    """Make a cache. The block fills its arrays and its notes; when it ends the folder is there.

    The arrays need not fit in memory. If the block fails nothing is left. If another process has made the same folder
    meanwhile, its folder stays. Raises OSError, before the block begins, if the disk has no space for the arrays.
    """
    temporary = partial_name(folder)
    make_folder(temporary)
    try:
        arrays = _map_new_arrays(temporary, layout)
        cached = CachedArrays(arrays, {})
        yield cached
        for array in arrays.values():
            array.flush()
        files = {f"{name}.npy": file_sha256(temporary / f"{name}.npy") for name in arrays}
        write_record(temporary / RECORD, {"files": files, "notes": cached.notes})
        try:
            os.rename(temporary, folder)
            flush_folder(folder.parent)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _map_new_arrays(folder: Path, layout: Layout) -> dict[str, Any]:
    """Map new files of zeros into memory. Raises OSError that names the space they take if the disk has less."""
    arrays: dict[str, Any] = {}
    size = sum(int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize for dtype, shape in layout.values())
    try:
        for name, (dtype, shape) in layout.items():
            path = folder / f"{name}.npy"
            arrays[name] = np.lib.format.open_memmap(path, "w+", dtype, shape)
            _reserve_space(path, arrays[name].offset)
    except OSError as error:
        if error.errno in NO_SPACE:
            why = f"{os.strerror(error.errno)}: {size / 1e6:.0f} MB are needed"
            raise OSError(error.errno, why, str(folder.parent)) from error
        raise
    return arrays


def _reserve_space(path: Path, start: int) -> None:
    """Reserve the disk space of a file that holds nothing from `start` on.

    Otherwise the system looks for space when the mapping is written to, and ends the process where there is none.
    """
    with open(path, "r+b") as file:
        size = os.path.getsize(path)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        file.seek(start)
        for place in range(start, size, CHUNK):
            file.write(bytes(min(CHUNK, size - place)))


def array_cache_damage(folder: Path) -> str:
    """The damage of a cache, in words; "" if its files are as they were written."""
    try:
        for name, expected in read_record(folder / RECORD)["files"].items():
            if file_sha256(folder / name) != expected:
                return f"{name} has changed"
    except (OSError, UserError, KeyError, AttributeError) as error:
        return reason(error)
    return ""


def map_array_cache(folder: Path) -> CachedArrays:
    """Open a cache, without a look at its checksums: for that see `array_cache_damage`.

    torch accepts only writable arrays, so these are; what is written to them does not reach the files.
    """
    record = read_record(folder / RECORD)
    arrays = {name.removesuffix(".npy"): np.load(folder / name, mmap_mode="c") for name in record["files"]}
    return CachedArrays(arrays, record["notes"])


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


Column = tuple[np.dtype, tuple[int, ...], Callable[[int], Any]]
"""The type of an array, the shape of a row, and a function from a row's number to the row."""


def write_npz_by_rows(path: Path, count: int, columns: Mapping[str, Column]) -> None:
    """Write a compressed .npz file of arrays with `count` rows, row by row, so that it need not fit in memory."""
    temporary = partial_name(path)
    try:
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED) as archive:
            for name, (dtype, shape, row) in columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    header = {"descr": dtype.str, "fortran_order": False, "shape": (count, *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                    for i in range(count):
                        file.write(np.asarray(row(i), dtype).tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
