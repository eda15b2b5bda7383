"""One writer per folder: a lock that names its holder, and that the system releases when the holder ends.

Processes that need the same cache wait for each other instead: they take turns.
"""

import contextlib
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from unclip.errors import UserError
from unclip.store.files import make_folder, member

HOLDER = "process"
"""Begins the text of the file `lock`."""
HANDLES: set[int] = set()
"""Open files and folders that this process has locked."""


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold a folder's lock during the block; the file `lock` in it says who holds it.

    The folder itself is locked, so that the lock cannot be deleted without it; and the file too, for network file
    systems that lock no folders. The system releases both when the holder ends, however it ends. Yields a function that
    raises UserError if the folder is no longer the one that is locked.

    Raises UserError, which names the holder, if another process holds the lock; and for a file of this name of others.
    """
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        locked = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, locked)
        with contextlib.suppress(OSError):
            _lock(locked, folder, stack)
        file = stack.enter_context(open(member(folder, "lock"), "a+", errors="replace"))
        _lock(file.fileno(), folder, stack)
        file.seek(0)
        if not (file.read(len(HOLDER)) or HOLDER).startswith(HOLDER):
            raise UserError(f"{folder / 'lock'} was not written by unclip; move it, or choose another --out")
        file.truncate(0)
        file.write(f"{HOLDER} {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        stack.callback(file.truncate, 0)
        yield lambda: _check_held(folder, locked)


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Let processes run the block for a folder in turn. Each waits until the one before it has left the block."""
    import fcntl  # Windows has none

    make_folder(folder)
    with contextlib.ExitStack() as stack:
        locked = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, locked)
        HANDLES.add(locked)
        stack.callback(HANDLES.discard, locked)
        try:
            fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warnings.warn(f"another process is making {folder}; waiting until it ends", stacklevel=3)
            fcntl.flock(locked, fcntl.LOCK_EX)
        except OSError:  # of a file system that locks no folders
            pass
        yield


def _lock(handle: int, folder: Path, stack: contextlib.ExitStack) -> None:
    """Lock an open file or folder. Raises UserError if another process has; OSError if the file system cannot."""
    import fcntl  # Windows has none; there nothing but training needs it

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read_holder(folder / "lock")
        raise UserError(f"{folder} is being written by {holder}; wait until it ends, or choose another --out") from None
    HANDLES.add(handle)
    stack.callback(HANDLES.discard, handle)


def _give_back() -> None:
    """Close what the parent of this process has locked: a child must not hold a lock longer than its parent."""
    for handle in HANDLES:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, handle)  # an open file still, as the objects that own it in this process will close it
        os.close(nothing)
    HANDLES.clear()


if hasattr(os, "register_at_fork"):  # Windows forks no process
    os.register_at_fork(after_in_child=_give_back)


def _check_held(folder: Path, locked: int) -> None:
    try:
        is_same = os.path.samestat(os.stat(folder), os.fstat(locked))
    except FileNotFoundError:
        is_same = False
    if not is_same:
        raise UserError(f"{folder} was deleted while this training wrote to it; give the command again to train anew")


def _read_holder(lock: Path) -> str:
    for _ in range(20):  # the holder writes its name just after it has the lock
        if lock.exists() and (holder := lock.read_text(errors="replace")):
            return holder
        time.sleep(0.05)
    return "another process"
