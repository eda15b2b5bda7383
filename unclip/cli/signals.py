"""Signals that ask a program to end. Imports nothing heavy: a program installs them before it imports anything else.

The first one ends a program at once with one line that says how to go on; within `postponed` it is only noted, and the
block finishes what it is at. A second one ends the program at once everywhere. The exit status is 128 plus the signal's
number: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
"""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RELAY = 2.0
"""Seconds within which a launcher of several ranks passes on what its terminal has sent them already."""


class Stop:
    """Whether the program was asked to end."""

    def __init__(self):
        self.number = 0
        self.since = 0.0
        self.postponed = False


STOP = Stop()


def tell_lost() -> bool:
    """Whether one of several ranks has ended without a word, which is then told. The trainers replace it."""
    return False


def install() -> None:
    """Take the signals over, for the rest of the process. What is ignored already, as under nohup, stays so.

    A thread waits for them: Python calls its own handlers only between two bytecodes of the main thread, which may wait
    for other ranks in a call that lasts hours.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def _watch(reader: int) -> None:
    while number := os.read(reader, 1):
        if number[0] in NUMBERS:
            _receive(number[0])


def _receive(number: int) -> None:
    relayed = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - STOP.since < RELAY
    if STOP.number and relayed:
        return
    if STOP.number or not STOP.postponed:
        _leave(number)
    STOP.number, STOP.since = number, time.monotonic()


def _leave(number: int) -> None:
    """End the process from any thread, whatever the others are at; files are written whole or not at all."""
    lost = number == signal.SIGTERM and tell_lost()  # a launcher so ends the ranks that are left
    if not lost and os.environ.get("RANK", "0") == "0":
        os.write(2, f"stopped by {name(number)}; {how_to_go_on()}\n".encode())
    os._exit(128 + number)


def name(number: int) -> str:
    return signal.Signals(number).name


def how_to_go_on() -> str:
    again = "the same command again goes on"
    return again if "TORCHELASTIC_RUN_ID" in os.environ else f"{again}: {shlex.join(sys.orig_argv)}"


@contextlib.contextmanager
def postponed() -> Iterator[Stop]:
    """Only note a signal while the block runs; what it leaves unanswered ends the program after it."""
    STOP.postponed = True
    try:
        yield STOP
    finally:
        STOP.postponed = False
    if STOP.number:
        _leave(STOP.number)
