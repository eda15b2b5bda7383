"""Files: written whole or not at all, records that notice any change, and one writer per folder."""

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unclip.errors import UserError

LARGEST_JSON = 2**26
"""Bytes of JSON that are read at most: far more than any file of a pipeline has."""
COUNTER = itertools.count()


def write_atomically(path: Path, content: bytes | str | Iterable[bytes | memoryview], durable: bool = True) -> None:
    """Write a whole file or nothing: a full disk or a crash leaves the old file as it was.

    The file is flushed to the disk before its name is, and then the folder: after a power cut too it is the old file or
    the new one. `durable` False leaves out both, for what is easily made again.
    """
    make_folder(path.parent)
    chunks = [content] if isinstance(content, (bytes, str)) else content
    temporary = partial_name(path)
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk.encode() if isinstance(chunk, str) else chunk)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            flush_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a write that fails does not say where, or names what nobody knows
        raise


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, so that a power cut does not take them away."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(handle)


def partial_name(path: Path) -> Path:
    """A name beside `path` for what is not whole yet. It tells whose it is: `remove_leftovers` reads it."""
    return path.with_name(f".{path.name[:100]}.{socket.gethostname()}.{os.getpid()}.{next(COUNTER)}.partial")


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this host that are no longer there were writing into a folder."""
    for path in folder.glob(".*.partial"):
        rest, number = path.name.removesuffix(".partial").rsplit(".", 2)[:2]
        if rest.endswith(f".{socket.gethostname()}") and number.isdecimal() and not is_alive(int(number)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder's lock for the block: the file `lock` in it, which says who holds it.

    The system gives the lock back when its holder ends, however it ends. Raises UserError, which names the holder, if
    another process has it.
    """
    import fcntl  # not on Windows, where nothing else here asks for it

    make_folder(folder)
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being written by {_holder(folder / 'lock')}; wait for it, or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(lock: Path) -> str:
    for _ in range(20):  # it writes who it is just after it has the lock
        if text := lock.read_text(errors="replace"):
            return text
        time.sleep(0.05)
    return "another process"


def check_fetched(path: Path) -> Path:
    """The path itself. Raises UserError if Git LFS has left a note there, in place of the file."""
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise UserError(f"{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull")
    return path


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


Column = tuple[np.dtype, tuple[int, ...], Callable[[int], Any]]


def write_array_file(path: Path, count: int, columns: dict[str, Column]) -> None:
    """A compressed .npz file of arrays with `count` rows, row by row, so that it need not fit in memory.

    Each column is its type, the shape of a row, and a function that gives row i.
    """
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


def read_json(path: Path) -> Any:
    """Raises UserError for what is not JSON, too large, or nested too deep."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); restore it or train that stage again") from error


def write_record(path: Path, content: dict[str, Any]) -> None:
    """JSON with the checksum of what it says, which `read_record` checks."""
    write_json(path, {**content, "checksum": checksum(content)})


def read_record(path: Path, advice: str = "restore it or train that stage again") -> dict[str, Any]:
    """What `write_record` wrote. Raises UserError if anything of it has changed since."""
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("checksum", None) != checksum(content):
        raise UserError(f"{path} has changed since it was written: its checksum is another; {advice}")
    return content


def checksum(content: dict[str, Any]) -> str:
    """The SHA-256 of what JSON says, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
