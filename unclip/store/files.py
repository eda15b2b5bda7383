"""Files that are written whole or not at all, whenever the process or the machine stops.

A file has a partial name until it is written whole. `remove_leftovers` removes what a killed process left under such a
name.
"""

import errno
import itertools
import os
import shutil
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from unclip.errors import UserError

COUNTER = itertools.count()
"""Numbers the partial names of this process."""


def write_atomically(
    path: Path, content: bytes | str | Iterable[str | bytes | memoryview], durable: bool = True
) -> None:
    """Write a whole file or nothing: a full disk or a crash leaves the old file as it was.

    Args:
        content: the bytes or the text, or the bytes in several parts.
        durable: flush the file to the disk before its name, and then the folder, so that the old file or the new one
            survives a power cut. False leaves both out, for files that are easily made again.
    """
    make_folder(path.parent)
    chunks = [content] if isinstance(content, (bytes, str)) else content
    temporary = partial_name(path)
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk.encode(errors="backslashreplace") if isinstance(chunk, str) else chunk)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            flush_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # the system names no file, or the temporary one, which nobody knows
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and its parents so that they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can: Windows opens no folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(handle)


def partial_name(path: Path) -> Path:
    """A name beside `path` for a file or folder that is not whole yet.

    It holds this host and this process, by which `remove_leftovers` knows whether the writer is still alive.
    """
    return path.with_name(f".{path.name[:100]}.{socket.gethostname()}.{os.getpid()}.{next(COUNTER)}.partial")


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files and folders of processes of this host that have ended."""
    for path in folder.glob(".*.partial"):
        rest, process = path.name.removesuffix(".partial").rsplit(".", 2)[:2]
        on_this_host = rest.endswith(f".{socket.gethostname()}")
        if on_this_host and process.isdecimal() and not process_is_alive(int(process)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def process_is_alive(process: int) -> bool:
    """Whether a process of this number exists on this host; on Windows, where asking would end it, always True."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def check_fetched(path: Path) -> Path:
    """The path itself. Raises UserError if it holds a Git LFS pointer in place of the file."""
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise UserError(f"{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull")
    return path
