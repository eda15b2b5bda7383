"""Signals that ask a program to end. Imports nothing heavy: a program takes them over before it imports anything else.

The first signal ends a program at once, with one line that says how to go on. Within `postponed` it is only noted, and
the block finishes its step. A second signal ends the program at once everywhere. The exit status is 128 plus the
signal's number: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP, which Windows does not have.
"""

import atexit
import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from unclip.cli.reporting import error_reporter, is_rank_zero

NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
RELAY = 2.0
"""Seconds within which a launcher of several ranks passes on a signal that its terminal has sent them already."""


class Stop:
    """The request to end a program."""

    def __init__(self):
        self.number = 0
        """The signal's number; 0 if there was none."""
        self.since = 0.0
        """Time of the signal, on the monotonic clock."""
        self.postponed = False


STOP = Stop()


def install() -> None:
    """Take the signals over, for the rest of the process. Those that are ignored already, as under nohup, stay so.

    A thread waits for them: Python calls its own handlers only between two bytecodes of the main thread, which may wait
    for other ranks in a call that lasts hours.
    """
    reader, writer = socket.socketpair()  # Windows cannot make a pipe that does not block
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@contextlib.contextmanager
def taken_over() -> Iterator[None]:
    """Take the signals over while the block runs, and give them back after it.

    An interactive session keeps its signals: Ctrl-C then interrupts the program, and the session goes on. So does a
    program in another thread than the main one, where Python does not let signals be taken over.
    """
    if hasattr(sys, "ps1") or threading.current_thread() is not threading.main_thread():
        yield
        return
    STOP.number = 0
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in NUMBERS}
    wakeup = signal.set_wakeup_fd(-1)
    install()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        socket.close(signal.set_wakeup_fd(wakeup))  # which ends the thread that reads it
        atexit.register(_end_silently, handlers)


def _end_silently(handlers: dict[int, Any]) -> None:
    """Let a signal end the process without a traceback while the interpreter ends."""
    for number, handler in handlers.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _watch(reader: socket.socket) -> None:
    while number := reader.recv(1):
        if number[0] in NUMBERS:
            _receive(number[0])
    reader.close()


def _receive(number: int) -> None:
    relayed = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - STOP.since < RELAY
    if STOP.number and relayed:
        return
    if STOP.number or not STOP.postponed:
        _leave(number)
    STOP.number = number
    STOP.since = time.monotonic()


def _leave(number: int) -> None:
    """End the process from any thread, whatever the others do; files are written whole or not at all."""
    rank_is_lost = (
        number == signal.SIGTERM and error_reporter().report_lost_rank()
    )  # a launcher so ends the other ranks
    if not rank_is_lost and is_rank_zero():
        with contextlib.suppress(OSError):  # nobody may read it any more
            os.write(2, f"stopped by {name(number)}; {how_to_go_on()}\n".encode(errors="backslashreplace"))
    os._exit(128 + number)


def name(number: int) -> str:
    return signal.Signals(number).name


def how_to_go_on() -> str:
    """Advice for a program that was stopped: the command to give again, unless torchrun gave it."""
    advice = "the same command again goes on"
    return advice if "TORCHELASTIC_RUN_ID" in os.environ else f"{advice}: {shlex.join(sys.orig_argv)}"


@contextlib.contextmanager
def postponed() -> Iterator[Stop]:
    """Only note a signal while the block runs; one that the block leaves unanswered ends the program after it."""
    STOP.postponed = True
    try:
        yield STOP
    finally:
        STOP.postponed = False
    if STOP.number:
        _leave(STOP.number)
