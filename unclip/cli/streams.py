"""Standard streams that are closed, cannot be written to, or lack letters: none of this may stop a program.

Imports nothing heavy.
"""

import contextlib
import io
import os
import sys
from typing import TextIO

MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}
"""The standard streams in the order of their numbers."""


def mend_streams() -> None:
    """Put the null device in place of streams that are closed, as by `>&-`, or that refuse to be written to.

    Letters that the encoding of a stream lacks are escaped. Call it before anything is opened: the system gives the
    number of a closed stream to the next file.
    """
    for name, mode in MODES.items():
        stream = getattr(sys, name)
        if stream is None:
            null = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, null)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if not _is_writable(stream):
                _discard(stream)


def drop_unwritten() -> None:
    """Discard what cannot be written, so that the interpreter does not try it once more when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream)


def _is_writable(stream: TextIO) -> bool:
    try:
        os.write(stream.fileno(), b"")
    except io.UnsupportedOperation:  # a stream in memory
        return True
    except OSError:
        return False
    return True


def _discard(stream: TextIO) -> None:
    """Let the null device take all that is written to a stream from now on."""
    with contextlib.suppress(io.UnsupportedOperation), open(os.devnull, "w", encoding="utf-8") as null:
        os.dup2(null.fileno(), stream.fileno())
