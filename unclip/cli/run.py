"""How every program runs: streams are mended, signals answered, errors become one line, the exit status is set.

def main(argv: Sequence[str] | None = None) -> int | None:
    from somewhere import slow_work    # after the signals are taken over
    ...

if __name__ == "__main__":
    run(main)
"""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from unclip.cli import signals, streams
from unclip.cli.reporting import RANK_ENDED, error_reporter, is_rank_zero
from unclip.errors import UserError, printable, reason

Main = Callable[[Sequence[str] | None], int | None]
"""The entry of a program: takes its arguments, None for those of this process, and returns its exit status or None."""

HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; free some space, and give the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST), "; choose another folder"),
}
"""Advice for errors of the operating system."""
FOR_TRAINING = ("datasets", "matplotlib", "torchvision", "xxhash")
"""Packages that only training, its data and its plots need: the extra `train`."""


def run(main: Main, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a program in this process, and end the process with the program's exit status.

    A process that goes on all the same, as an interactive session does after %run, has its signals back.
    """
    streams.mend_streams()
    with signals.taken_over():
        status = call(main, argv)
    sys.exit(status)


def call(main: Main, argv: Sequence[str] | None = None) -> int:
    """Call a program's entry and return its exit status.

    An error that a user can mend becomes one line on standard error, and status 1. Any other error keeps its traceback.
    """
    show_warning = warnings.showwarning
    warnings.showwarning = _print_warning  # type: ignore[assignment]
    try:
        status = main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except Exception as error:
        message = explain(error)
        if "RANK" in os.environ:
            _end_rank(message, error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    finally:
        streams.drop_unwritten()
        warnings.showwarning = show_warning
    return status or 0


def _print_warning(message: Warning | str, *_: Any) -> None:
    if is_rank_zero():
        print(f"warning: {message}", file=sys.stderr)


def explain(error: Exception) -> str | None:
    """The line to print for an error that a user can mend or that another rank has caused; None for a defect."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in FOR_TRAINING:
        return f"this needs {error.name}, which is not installed: pip install 'unclip[train]'"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return printable(f"{where}{error.strerror or error}{HINTS.get(error.errno or 0, '')}")
    if _is_out_of_memory(error):
        return "out of memory; choose a smaller batch size, or a smaller model"
    if "RANK" in os.environ and _is_of_another_rank(error):
        return RANK_ENDED.format("")
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the CPU or an accelerator.

    PyTorch has an exception type for accelerators alone; for the CPU it raises a RuntimeError with these words.
    """
    torch = sys.modules.get("torch")
    kinds = (MemoryError, torch.OutOfMemoryError) if torch else MemoryError
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


GLOO_WORDS = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "gloo")


def _is_of_another_rank(error: Exception) -> bool:
    """Whether the connection of the ranks has failed.

    NCCL and the store have exception types, which descend from DistError; gloo raises a RuntimeError with these words.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return False
    is_gloo = isinstance(error, RuntimeError) and any(word in str(error) for word in GLOO_WORDS)
    return is_gloo or isinstance(error, torch.distributed.DistError)


def _end_rank(message: str | None, error: Exception) -> NoReturn:
    """End one of several ranks at once, with status 1. One of them reports the error; none waits for the others."""
    signals.STOP.postponed = True  # a launcher that ends the other ranks too must not cut this short
    reporter = error_reporter()
    is_reported = message == RANK_ENDED.format("") and reporter.report_lost_rank()
    if not is_reported and reporter.may_report():
        if message is None:
            traceback.print_exception(error)
            message = f"rank {os.environ['RANK']} has ended: {type(error).__name__}: {reason(error)}"
        print(f"error: {message}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
