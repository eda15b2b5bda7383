"""Run work on several ranks: processes of this machine that talk by gloo."""

import contextlib
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch._dynamo  # which the engines import: once, not in each process
import torch.distributed as dist
import torch.distributed.checkpoint.hf_storage
import torch.distributed.fsdp


def on_ranks(count: int, work: Callable[[], Any]) -> list[Any]:
    """Return what work() returns on each rank: anything that pickle takes. The processes are forked, which is quick."""
    with started(count, work) as (_, ends):
        return [end.recv() for end in ends]


@contextlib.contextmanager
def started(
    count: int, work: Callable[[], Any], patience: float = 20
) -> Iterator[tuple[list[multiprocessing.Process], list[Connection]]]:
    """The ranks at work, and where each sends what work() returns. Those that are left are killed in the end."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ends = [fork.Pipe(duplex=False) for _ in range(count)]
        processes = [
            fork.Process(target=_rank, args=(rank, count, f"file://{folder}/store", work, ends[rank][1]))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for _, there in ends:
            there.close()
        try:
            yield processes, [here for here, _ in ends]
        finally:
            for process in processes:
                process.join(patience)
                process.kill()
                process.join()


def _rank(rank: int, count: int, store: str, work: Callable[[], Any], result: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    result.send(work())
    dist.barrier()
    dist.destroy_process_group()
