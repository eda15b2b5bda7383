"""One writer per folder: a lock that names its holder, and that the system releases when the holder ends."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from unclip.errors import UserError
from unclip.store.files import make_folder


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder's lock during the block: the file `lock` in it, which says who holds it.

    The system releases the lock when its holder ends, however it ends. Raises UserError, which names the holder, if
    another process holds it.
    """
    import fcntl  # Windows has none; there nothing but training needs it

    make_folder(folder)
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(folder / "lock")
            raise UserError(
                f"{folder} is being written by {holder}; wait until it ends, or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _read_holder(lock: Path) -> str:
    for _ in range(20):  # the holder writes its name just after it has the lock
        if holder := lock.read_text(errors="replace"):
            return holder
        time.sleep(0.05)
    return "another process"
