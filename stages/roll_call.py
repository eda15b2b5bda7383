"""How the ranks find each other, also where torchrun has started them again.

torchrun keeps its store when it starts ranks again, and with it the addresses of processes that have ended; nor do the
agents of several machines agree on how often they have (github.com/pytorch/pytorch/issues/135712). So rank 0 calls a
word that is new, the others answer it, and everything after that has the word before its name in the store.
"""

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

POLL = 0.02
"""Seconds between two looks into the store."""


def meet(patience: timedelta) -> tuple[Store, int, int]:
    """The part of torchrun's store that belongs to the processes that run now, this one's rank, and their number.

    Raises an error of the store if the others have not come after `patience`.
    """
    store, rank, ranks = next(rendezvous("env://", timeout=patience))
    store.set_timeout(patience)
    word = call(store, ranks) if rank == 0 else answer(store, rank)
    return PrefixStore(word, store), rank, ranks


def call(store: Store, ranks: int) -> str:
    """Call a new word until all other ranks have answered, and tell them who is here. Returns the word."""
    word = uuid.uuid4().hex
    store.set("roll call", word)
    here = []
    for rank in range(1, ranks):
        while not (reply := store.get(f"reply {rank}").decode()).startswith(word):
            time.sleep(POLL)
        here.append(reply)
    store.set(f"here {word}", " ".join(here))
    return word


def answer(store: Store, rank: int) -> str:
    """Answer the word that is called until this very process is told among those who are here. Returns the word."""
    name = uuid.uuid4().hex
    while True:
        word = store.get("roll call").decode()  # that of an earlier start, until rank 0 has called
        reply = f"{word}:{name}"
        store.set(f"reply {rank}", reply)
        if store.check([f"here {word}"]) and reply in store.get(f"here {word}").decode().split():
            return word
        time.sleep(POLL)
