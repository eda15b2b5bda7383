"""Signs of life of the ranks: each gives them, and notes which of the others has stopped.

A rank that is killed, or whose machine fails, cannot report that itself, and the others may wait for it in a call that
never returns. The signs go through the store by which the ranks found each other.
"""

import atexit
import os
import sys
import threading
import time

import torch.distributed as dist

from unclip.cli.reporting import RANK_ENDED, ErrorReporter, set_error_reporter

BEAT = 0.5
"""Seconds between two signs of life."""
QUIET = 3.0
"""Seconds of silence after which a rank counts as ended where something has failed already."""
SILENT = 25.0
"""Seconds of silence after which a rank counts as ended, and all ranks end."""
LEFT = b"left"
"""The last sign of a rank that ends because it is done."""


def start() -> None:
    """Give signs of life, and report errors by what the others give, until this process ends."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.distributed_c10d._get_default_store().clone())
    set_error_reporter(ranks)
    threading.Thread(target=ranks.listen, daemon=True).start()
    atexit.register(ranks.leave)


class Ranks(ErrorReporter):
    """The last sign of life of each of the other ranks: a counter in the store for each, which that rank raises."""

    def __init__(self, rank: int, count: int, store: dist.Store):
        self.rank = rank
        self.store = store
        self.others = [other for other in range(count) if other != rank]
        self.signs = dict.fromkeys(self.others, b"")
        self.heard = dict.fromkeys(self.others, time.monotonic())
        self.reporting = threading.Lock()
        for other in range(count):
            store.add(_key(other), 0)  # one that is not there yet would be waited for

    def listen(self) -> None:
        """Raise this rank's counter and read the others', until all is done."""
        while others := self.others:
            try:
                self.store.add(_key(self.rank), 1)
                signs = self.store.multi_get([_key(other) for other in others])
            except RuntimeError:  # the store has ended, as it does when all is done
                return
            now = time.monotonic()
            for other, sign in zip(others, signs, strict=True):
                if sign != self.signs[other] or sign == LEFT:
                    self.signs[other] = sign
                    self.heard[other] = now
            if self._report_silent_for(SILENT):
                os._exit(1)
            time.sleep(BEAT)

    def leave(self) -> None:
        """Give the last sign: this rank ends because it is done."""
        try:
            self.others = []
            self.store.set(_key(self.rank), LEFT.decode())
        except RuntimeError:
            pass

    def report_lost_rank(self) -> bool:
        """Wait for a rank to fall silent; one of the others then reports it. Returns whether there is such a rank."""
        until = time.monotonic() + QUIET + 2 * BEAT
        while not (is_lost := self._report_silent_for(QUIET)) and time.monotonic() < until:
            time.sleep(BEAT / 5)
        return is_lost

    def _report_silent_for(self, seconds: float) -> bool:
        with self.reporting:  # a second thread ends the process: not before the first has reported
            silent = [str(other) for other in self.others if time.monotonic() - self.heard[other] > seconds]
            if silent and self.may_report():
                which = f" (rank {', '.join(silent)})"
                print(f"error: {RANK_ENDED.format(which)}", file=sys.stderr, flush=True)
            return bool(silent)

    def may_report(self) -> bool:
        """Whether no rank has reported an error yet: an error of one rank ends them all."""
        try:
            return self.store.add("errors told", 1) == 1
        except RuntimeError:  # the store is gone too
            return self.rank == 0


def _key(rank: int) -> str:
    return f"signs of life of rank {rank}"
