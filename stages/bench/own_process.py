"""Measure in a process of its own, which ends in time."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from unclip.errors import reason


def in_own_process(limit: float, function: Callable[..., Any], *args: Any) -> Any:
    """The result of a function, computed by a process that is killed after so many seconds, with all that it started.

    Raises TimeoutError for that, and RuntimeError for an error of the function's.
    """
    context = multiprocessing.get_context("spawn")  # CUDA survives no fork
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            raise TimeoutError(f"not done in {limit:.0f} s")
        result, failure = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with status {process.exitcode}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    if failure is not None:
        raise RuntimeError(failure)
    return result


def _send_result(sender: Connection, function: Callable[..., Any], args: tuple) -> None:
    os.setsid()  # a group of processes of its own
    try:
        sender.send((function(*args), None))
    except Exception as error:
        sender.send((None, reason(error)))
