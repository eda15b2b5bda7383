"""Files that are written whole or not at all, whenever the process or the machine stops.

A file has a partial name until it is written whole. `remove_leftovers` removes what a killed process left under such a
name.
"""

import contextlib
import errno
import functools
import itertools
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from unclip.errors import UserError, shown
from unclip.store.checksums import sha256

COUNTER = itertools.count()
"""Numbers the partial names of this process."""
PARTIAL = re.compile(r"\..+\.(?P<machine>[0-9a-f]{12})\.(?P<process>\d+)\.\d+\.partial")
"""A partial name, by which we know a file as ours."""
ABANDONED = 24 * 3600
"""Seconds after which a partial file that nobody touches is no longer being written."""


def write_atomically(
    path: Path, content: bytes | str | Iterable[str | bytes | memoryview], durable: bool = True
) -> None:
    """Write a whole file or nothing: a full disk or a crash leaves the old file as it was.

    Args:
        content: the bytes or the text, or the bytes in several parts.
        durable: flush the file to the disk before its name, and then the folder, so that the old file or the new one
            survives a power cut. False leaves both out, for files that are easily made again.
    """
    with partial_file(path, content, durable) as temporary:
        os.replace(temporary, path)


@contextlib.contextmanager
def partial_file(
    path: Path, content: bytes | str | Iterable[str | bytes | memoryview], durable: bool = True
) -> Iterator[Path]:
    """Write a whole file under a partial name beside `path`, and yield that name for the block to rename.

    The arguments are those of `write_atomically`. Nothing is left if the write or the block fails.
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
        yield temporary
        if durable:
            flush_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # the system names no file, or the temporary one, which nobody knows
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and its parents so that they survive a power cut. Raises UserError if a file has such a name."""
    if folder.is_file():
        raise UserError(f"{folder} is a file, and a folder is wanted there; name another folder")
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

    It holds this machine and this process, by which `remove_leftovers` knows whether the writer is still alive.
    """
    return path.with_name(f".{path.name[:100]}.{this_machine()}.{os.getpid()}.{next(COUNTER)}.partial")


@functools.cache
def this_machine() -> str:
    """A mark of this machine or container since it started, which no other has, even one of the same host name."""
    try:
        numbers_of_processes = os.readlink("/proc/self/ns/pid")  # differs between containers
        mark = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + numbers_of_processes
    except OSError:  # not Linux
        mark = str(uuid.getnode())
    return sha256(f"{socket.gethostname()} {mark}".encode())[:12]


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose content is moved into `folder` when the block ends, model_index.json last.

    If the block is cut short, nothing of it is left there. Raises UserError for a name that `folder` holds already.
    """
    make_folder(folder)
    remove_leftovers(folder)
    temporary = partial_name(folder / "pipeline")
    try:
        temporary.mkdir()
        yield temporary
        made = sorted(temporary.iterdir(), key=lambda path: path.name == "model_index.json")
        check_absent(folder, [path.name for path in made])
        for path in made:
            os.rename(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_absent(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError if one of these files is in a folder already."""
    if taken := [name for name in names if os.path.lexists(folder / name)]:
        raise UserError(f"{folder} holds a {taken[0]} already; choose another folder, or move that")


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files and folders whose writers have ended.

    Of another machine's writer, or one before this machine was started anew, only the time tells that it has ended.
    """
    for path in folder.glob(".*.partial"):
        if mark := PARTIAL.fullmatch(path.name):
            is_ours = mark["machine"] == this_machine()
            if not process_is_alive(int(mark["process"])) if is_ours else is_abandoned(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether nobody has written to a file, or to anything in a folder, for a day."""
    times = [0.0]
    for inner in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            times.append(inner.stat().st_mtime)
    return max(times) < time.time() - ABANDONED


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


def member(folder: Path, name: str) -> Path:
    """The path of a file, or of a folder, within a folder that may come from a stranger; it need not exist.

    Raises UserError for a name that leads out of the folder, and for a link. Links of the Hub's cache are followed,
    into the folder of its files.
    """
    root = Path(os.path.realpath(folder))
    path = root / name
    if "\0" in name or ".." in Path(name).parts or path == root or not path.is_relative_to(root):
        raise UserError(f"{shown(name)} is no name of a file in {folder}, and nothing outside is read")
    target = Path(os.path.realpath(path))
    caches = [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
    if target != path and not any(map(target.is_relative_to, caches[:1])):
        raise UserError(f"{folder / name} is a link, and only files of the folder itself are read; put the file there")
    return folder / name


def check_fetched(path: Path) -> Path:
    """The path itself. Raises UserError if it holds a Git LFS pointer in place of the file."""
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise UserError(f"{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull")
    return path
