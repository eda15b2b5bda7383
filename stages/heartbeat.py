"""Which rank has ended without a word: each gives signs of life, and notes who gives none.

A rank that is killed, or whose machine fails, cannot say so itself, and the others may wait for it in a call that never
returns. The signs go through the store by which the ranks found each other.
"""

import atexit
import os
import sys
import threading
import time

import torch.distributed as dist

from unclip.cli import options as cli
from unclip.cli import signals

BEAT = 0.5
"""Seconds between two signs of life."""
QUIET = 3.0
"""Seconds of silence by which a rank is known to have ended, where something has failed already."""
SILENT = 25.0
"""Seconds of silence after which a rank counts as ended, and all end."""


def start() -> None:
    """Give signs of life and listen to those of the others, until this process ends."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.distributed_c10d._get_default_store().clone())
    cli.is_first, signals.tell_lost = ranks.is_first_to_tell, ranks.tell_lost
    threading.Thread(target=ranks.listen, daemon=True).start()
    atexit.register(ranks.leave)


class Ranks:
    """When each of the other ranks last gave a sign of life: a counter of its own in the store, which it raises."""

    def __init__(self, rank: int, count: int, store: dist.Store):
        self.rank, self.store = rank, store
        self.others = [other for other in range(count) if other != rank]
        self.signs = dict.fromkeys(self.others, b"")
        self.heard = dict.fromkeys(self.others, time.monotonic())
        self.telling = threading.Lock()
        for other in range(count):
            store.add(_key(other), 0)  # one that is not there yet would be waited for

    def listen(self) -> None:
        while others := self.others:
            try:
                self.store.add(_key(self.rank), 1)
                signs = self.store.multi_get([_key(other) for other in others])
            except RuntimeError:  # the store has ended, as it does when all is done
                return
            now = time.monotonic()
            for other, sign in zip(others, signs, strict=True):
                if sign != self.signs[other] or sign == LEFT:
                    self.signs[other], self.heard[other] = sign, now
            if self._tell_silent_for(SILENT):
                os._exit(1)
            time.sleep(BEAT)

    def leave(self) -> None:
        """Say that this rank ends because it is done."""
        try:
            self.others = []
            self.store.set(_key(self.rank), LEFT.decode())
        except RuntimeError:
            pass

    def tell_lost(self) -> bool:
        """Whether a rank has ended without a word; then it is named, by one rank alone."""
        until = time.monotonic() + QUIET + 2 * BEAT
        while not (told := self._tell_silent_for(QUIET)) and time.monotonic() < until:
            time.sleep(BEAT / 5)
        return told

    def _tell_silent_for(self, seconds: float) -> bool:
        with self.telling:  # a thread that comes second ends the process: not before the first has told
            lost = [str(other) for other in self.others if time.monotonic() - self.heard[other] > seconds]
            which = f" (rank {', '.join(lost)})"
            if lost and self.is_first_to_tell():
                print(f"error: {cli.RANK_ENDED.format(which)}", file=sys.stderr, flush=True)
            return bool(lost)

    def is_first_to_tell(self) -> bool:
        """Whether no rank has named an error yet: what goes wrong on one rank ends them all."""
        try:
            return self.store.add("errors told", 1) == 1
        except RuntimeError:  # the store is gone too
            return self.rank == 0


LEFT = b"left"


def _key(rank: int) -> str:
    return f"signs of life of rank {rank}"
