"""Files on this machine and on others: the bytes that they begin with, and local copies to read from."""

import contextlib
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import paths
from data.folder_files import is_regular_file
from unclip.errors import UserError, reason
from unclip.store.files import check_fetched, make_folder, partial_name

TRIES = 5
"""Failures in a row after which a file counts as out of reach."""
PAUSE = 0.5
"""Seconds before the second try; each further one waits twice as long."""
TIMEOUT = 60
"""Seconds that a server may take to answer."""
BLOCK = 2**20
"""Bytes that are copied at once."""
FINAL = (401, 403, 404, 410)
"""Answers of a server that no further try changes."""


def is_remote(address: str) -> bool:
    """Whether an address names a protocol: https://, hf://, s3:// and so on."""
    return "://" in address


def open_at(address: str, start: int = 0) -> tuple[Any, int]:
    """The bytes of a file from `start` on, as an open file, and the size of the whole.

    Web addresses are read by Python itself, all others by fsspec. Raises what these raise.
    """
    if not address.startswith(("http://", "https://")):
        import fsspec  # slow to import

        system, path = fsspec.url_to_fs(address)
        file = system.open(path, "rb")
        file.seek(start)
        return file, system.size(path)
    headers = {"Range": f"bytes={start}-"} if start else {}
    answer = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
    length = answer.headers["Content-Length"]
    if length is None:
        raise OSError("the server does not say how many bytes it has")
    if answer.status == 206:
        return answer, start + int(length)
    answer.read(start)  # a server that knows no ranges
    return answer, int(length)


def read_start(address: str, count: int) -> tuple[int, bytes]:
    """The size of a file, and its first bytes. Raises UserError if it is missing, empty or out of reach."""
    if not is_remote(address):
        if not is_regular_file(Path(address)):
            raise UserError(f"{address} is missing, or not a file")
        check_fetched(Path(address))

    def read() -> tuple[int, bytes]:
        file, size = open_at(address)
        with file:
            return size, file.read(count)

    size, start = _with_tries(address, lambda _: read())
    if not size:
        raise UserError(f"{address} is empty; write or fetch it again")
    return size, start


@contextlib.contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """A path to read a file from: its own, or that of a copy which lasts as long as the block.

    Raises UserError if it is out of reach.
    """
    if not is_remote(address):
        yield Path(address)
        return
    make_folder(paths.CACHE)
    copy = partial_name(paths.CACHE / "shard")
    try:
        download(address, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def download(address: str, path: Path) -> None:
    """Copy a file to `path`. A copy that breaks off is gone on with. Raises UserError if it cannot be completed."""
    done = 0

    def copy(succeed: Any) -> None:
        nonlocal done
        file, size = open_at(address, done)
        with file:
            while block := file.read(BLOCK):
                target.write(block)
                done += len(block)
                succeed()
        if done != size:
            raise OSError(f"it ends after {done} of {size} bytes")

    with open(path, "wb") as target:
        _with_tries(address, copy)


def _with_tries(address: str, work: Any) -> Any:
    """Call work(succeed) until it does not fail, and return its result; `succeed` says that the try got on."""
    failures = 0

    def succeed() -> None:
        nonlocal failures
        failures = 0

    while True:
        try:
            return work(succeed)
        except Exception as error:  # networks and their libraries raise many kinds
            failures += 1
            is_final = isinstance(error, (FileNotFoundError, ImportError)) or getattr(error, "code", 0) in FINAL
            if is_final or failures == TRIES:
                raise UserError(
                    f"{address} cannot be read ({reason(error)}); check the address and the network"
                ) from error
        time.sleep(PAUSE * 2 ** (failures - 1))
