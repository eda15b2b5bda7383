"""Measure how fast a stream is read, and the memory that this takes.

    python -m data.stream.rate                                          # made-up JPEG shards of 64 and of 256 pixels
    python -m data.stream.rate path/to/shards --sizes 64 256 --workers 0 4
    python -m data.stream.rate --sizes 8 --workers 0 --rows 1000000     # whether memory stays as it is

The rows come as a training's rank takes them: read, shuffled and decoded by its workers, in batches. Prints the rows
per second for each size of the images and each number of workers, also by processor time, which other work hardly
changes, and the memory of the rank and of a worker. It needs Linux.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data.source_config import SourceConfig
from data.stream.loader import StreamLoader
from data.stream.made_up import write_shards
from data.stream.streamed_images import open_stream
from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.errors import UserError
from unclip.fields import bounded

MADE_UP = (8, 512)
"""Shards, and rows of each, where no source is named."""
SAMPLE = 30
"""Rows of the sample, which is not measured."""
TICK = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
"""Seconds in which Linux counts processor time."""


@dataclass(frozen=True)
class RateOptions:
    source: Annotated[str, tyro.conf.Positional] = ""
    """Shards as --data names them with --data.stream; without it: made-up ones, with JPEG files of each size."""
    sizes: tuple[int, ...] = bounded((64, 256), 1, 1024)
    """Heights and widths at which the images are read."""
    workers: tuple[int, ...] = bounded((0, 1, 2), 0, 1024)
    """Numbers of processes that read and decode; 0: the rank itself."""
    rows: int = bounded(10_000, 1, 10**9)
    """Rows of each measurement."""
    batch: int = bounded(50, 1, 65_536)
    """Rows that the rank takes at a time."""
    buffer: int = bounded(1000, 1, 10**7)
    """Rows among which a worker draws the next."""


@dataclass(frozen=True)
class Process:
    """The memory and the processor time of a process, as Linux tells them."""

    memory: int
    """Bytes."""
    seconds: float

    @classmethod
    def read(cls, number: int) -> "Process":
        """Raises OSError if there is no such process, or the system is not Linux."""
        folder = Path(f"/proc/{number}")
        pages = int((folder / "statm").read_text().split()[1])
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # in programs and in the system
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), ticks * TICK)


@dataclass(frozen=True)
class Measured:
    rows: int
    rate: float
    """Rows per second."""
    core_rate: float
    """Rows per second of processor time, over the rank and its workers: other work hardly changes it."""
    memory: int
    """Bytes of the rank."""
    worker_memory: int
    """Bytes of the largest worker; 0 if there is none."""


def measure(loader: StreamLoader, rows: int) -> Iterator[Measured]:
    """Take rows from a loader, and measure after 10,000, whenever they have doubled, and at the end."""
    next(loader)  # which starts the workers
    processes = [os.getpid(), *(worker.pid for worker in multiprocessing.active_children() if worker.pid)]
    before = sum(Process.read(number).seconds for number in processes)
    began = time.perf_counter()
    taken = 0
    for goal in [*(10_000 << n for n in range(17) if 10_000 << n < rows), rows]:
        while taken < goal:
            taken += len(next(loader).rows)
        wall = time.perf_counter() - began
        rank, *workers = map(Process.read, processes)
        seconds = sum(process.seconds for process in (rank, *workers)) - before
        largest = max((worker.memory for worker in workers), default=0)
        yield Measured(taken, taken / wall, taken / max(seconds, TICK), rank.memory, largest)


def main(argv: Sequence[str] | None = None) -> None:
    if sys.platform != "linux":
        raise UserError("the memory and the processor time of a process are read from /proc, which Linux alone has")
    options = parse(RateOptions, __doc__, argv=argv)
    print(f"{'pixels':>6}{'workers':>9}{'rows':>12}{'rows/s':>10}{'rows/core-s':>13}{'rank, MB':>10}{'worker, MB':>12}")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            source = options.source or str(write_shards(Path(folder) / "shards", size, *MADE_UP))
            for workers in options.workers:
                config = SourceConfig(
                    source, size=size, stream=True, sample=SAMPLE, buffer=options.buffer, workers=workers
                )
                [train] = open_stream(config, ["train"])
                with closing(train.open(0, options.batch, 0, 1)) as loader:
                    for found in measure(loader, options.rows):
                        rates = f"{found.rate:>10,.0f}{found.core_rate:>13,.0f}"
                        memory = f"{found.memory / 1e6:>10.0f}{found.worker_memory / 1e6:>12.0f}"
                        print(f"{size:>6}{workers:>9}{found.rows:>12,}{rates}{memory}", flush=True)


if __name__ == "__main__":
    run(main)
