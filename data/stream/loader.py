"""The batches of a stream: read and decoded by workers, the same again from any saved state.

`datasets` splits the shards by rank and worker, and goes on in the middle of one. A worker reads a block of rows, takes
them in random order, and then reads the next. A position is where a block begins and how much of it is taken, so that
no more than a block is read again when a training goes on.
"""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.data as torch_data
from torch import Tensor

from data.decoding import decode_image
from data.records import Columns, Record
from data.stream.order import ShardOrder
from data.stream.rows import Row, read_rows
from data.stream.shard_list import Shard
from unclip.errors import UserError, reason
from unclip.fitting import Fit
from unclip.image_opening import explain_unreadable, open_image

GIVEN_UP = 100_000
"""Rows in a row of which none can be used, after which a reader gives up."""


@dataclass(frozen=True)
class StreamPlan:
    """The rows of a stream, and how they become images."""

    shards: list[Shard]
    split: str | None
    """The split that is chosen by the hashes of the rows' keys; None for all rows."""
    columns: Columns
    size: int
    channels: int
    fit: Fit
    buffer: int
    """Rows of a block."""
    workers: int
    fingerprint: str


class Position(NamedTuple):
    """Where a reader is."""

    round: int = 0
    block: int = 0
    """Number of the block in the round."""
    begin: dict[str, Any] | None = None
    """The state of `datasets` where the block begins; None for the beginning of the round."""
    taken: int = 0
    """Rows of the block that are taken."""

    @property
    def finished(self) -> tuple[int, int]:
        """The round, and how many of its shards are finished."""
        return self.round, self.begin["examples_iterable"]["shard_idx"] if self.begin else 0


@dataclass
class RowBatch:
    """Rows of a step, from one worker."""

    images: Tensor
    """uint8 (b, C, H, W)."""
    rows: list[Row]
    """The b rows, without their image files."""
    position: Position
    """Where the worker goes on."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Names of rows that cannot be used, and why."""


class Readers(torch_data.IterableDataset):
    """The readers of a rank: in a worker of a loader, its batches without end.

    Readers before `first_worker` give None once: a loader begins with its first worker, but a batch of another may be
    the next. A reader that fails gives the message, and ends.
    """

    def __init__(
        self, plan: StreamPlan, order: ShardOrder, rank: int, positions: list[Position], first_worker: int, size: int
    ):
        self.plan = plan
        self.order = order
        self.rank = rank
        self.positions = positions
        self.first_worker = first_worker
        self.size = size

    def __iter__(self) -> Iterator[RowBatch | str | None]:
        worker = torch_data.get_worker_info()
        number = worker.id if worker else 0
        if number < self.first_worker:
            yield None
        try:
            yield from self._batches(number)
        except UserError as error:
            yield str(error)

    def _batches(self, worker: int) -> Iterator[RowBatch]:
        rows = []
        pixels = []
        problems: list[tuple[str, str]] = []
        for row, position in self._shuffled_rows(worker):
            problems += row.problems
            image = _decode(row, self.plan)
            if isinstance(image, str):
                problems.append((row.name, image))
            elif image is not None:
                rows.append(row._replace(image=None, problems=()))
                pixels.append(torch.from_numpy(image))
            if len(rows) == self.size:
                yield RowBatch(torch.stack(pixels), rows, position, problems)
                rows = []
                pixels = []
                problems = []
            if len(problems) > GIVEN_UP:
                name, why = problems[-1]
                raise UserError(f"{GIVEN_UP} rows in a row cannot be used, the last is {name}: {why}; mend the shards")

    def _shuffled_rows(self, worker: int) -> Iterator[tuple[Row, Position]]:
        """The rows that a reader takes, and where it goes on after each."""
        position = self.positions[worker]
        empty_rounds = 0
        while True:
            dataset = self._open_round(position.round)
            if position.begin:
                dataset.load_state_dict(position.begin)
            rows = iter(dataset)
            empty_rounds += 1
            while block := [example["row"] for example in islice(rows, self.plan.buffer)]:
                empty_rounds = 0
                end = dataset.state_dict()
                for index in self._block_order(worker, position, len(block))[position.taken :]:
                    position = position._replace(taken=position.taken + 1)
                    yield block[index], position
                position = Position(position.round, position.block + 1, end)
            if empty_rounds > self.order.count:
                raise UserError("the shards hold no rows for training; see: python -m data.inspect")
            position = Position(position.round + 1)

    def _open_round(self, number: int) -> Any:
        """The shards of a round as an IterableDataset, which gives each rank and worker its share."""
        from datasets import IterableDataset  # seconds to import
        from datasets.distributed import split_dataset_by_node

        shards = [self.plan.shards[i] for i in self.order.round_shards(number)]
        options = {"columns": self.plan.columns, "split": self.plan.split}
        dataset = IterableDataset.from_generator(read_rows, gen_kwargs={"shards": shards, **options})
        return split_dataset_by_node(dataset, self.rank, self.order.ranks)

    def _block_order(self, worker: int, position: Position, count: int) -> list[int]:
        place = self.order.place(self.rank, worker, position.round, 0)
        return np.random.default_rng([self.order.seed, place, position.block]).permutation(count).tolist()


class StreamLoader:
    """The batches that a rank takes from a stream, in order, with the state from which it goes on."""

    def __init__(self, plan: StreamPlan, seed: int, size: int, rank: int = 0, ranks: int = 1):
        """Take `size` rows at a time."""
        self.plan = plan
        self.size = size
        self.rank = rank
        self.order = ShardOrder(len(plan.shards), seed, ranks, max(1, plan.workers))
        self.positions = [Position()] * self.order.workers
        self.worker = 0
        """The worker whose batch is the next."""
        self.batches: Iterator[RowBatch | str | None] | None = None

    def __next__(self) -> RowBatch:
        """The next batch. Raises UserError if a shard is out of reach."""
        if self.batches is None:
            import datasets  # noqa: F401  (seconds, which the workers that are forked save)

            readers = Readers(self.plan, self.order, self.rank, list(self.positions), self.worker, self.size)
            loader = torch_data.DataLoader(
                readers,
                batch_size=None,
                num_workers=self.plan.workers,
                collate_fn=_unchanged,
                prefetch_factor=None,
                worker_init_fn=_leave_group,
            )
            self.batches = filter(lambda batch: batch is not None, loader)
        try:
            batch = next(self.batches)
        except RuntimeError as error:  # as a loader says that a worker was killed
            advice = "fewer --data.workers and a smaller --data.buffer take less memory; the same command goes on"
            raise UserError(f"a reader of the stream has ended ({reason(error)}); {advice}") from error
        if isinstance(batch, str):
            raise UserError(batch)
        self.positions[self.worker] = batch.position
        self.worker = (self.worker + 1) % self.order.workers
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The state of this rank, as JSON holds it."""
        order = {"left_over": list(self.order.left_over), "first": self.order.first}
        state = {"positions": [list(position) for position in self.positions], "worker": self.worker, "order": order}
        return json.loads(json.dumps(state))

    def load_state_dict(self, states: list[dict[str, Any]]) -> str:
        """Go on from the states of all ranks. Returns a line on what differs, if their number or the workers' does."""
        positions = [[Position(*position) for position in state["positions"]] for state in states]
        saved = ShardOrder(
            self.order.count,
            self.order.seed,
            len(states),
            len(positions[0]),
            tuple(states[0]["order"]["left_over"]),
            states[0]["order"]["first"],
        )
        self.close()
        if (saved.ranks, saved.workers) == (self.order.ranks, self.order.workers):
            self.order = saved
            self.positions = positions[self.rank]
            self.worker = states[self.rank]["worker"]
            return ""
        finished = [[position.finished for position in of_rank] for of_rank in positions]
        self.order = saved.after(finished, self.order.ranks, self.order.workers)
        self.positions = [Position()] * self.order.workers
        self.worker = 0
        return (
            f"going on with {self.order.ranks} x {self.order.workers} readers (ranks x --data.workers) after "
            f"{saved.ranks} x {saved.workers}: other batches, and shards that were begun are read again from the start"
        )

    def close(self) -> None:
        """End the workers."""
        self.batches = None


def decode_row(row: Row, size: int, channels: int, fit: Fit) -> np.ndarray | str:
    """The pixels of a row that holds an image, or the reason why they cannot be read."""
    try:
        return decode_image(Record(row.name, lambda: open_image(io.BytesIO(row.image or b"")), ()), size, channels, fit)
    except Exception as error:  # Pillow raises many kinds for broken files
        return explain_unreadable(error)


def _decode(row: Row, plan: StreamPlan) -> np.ndarray | str | None:
    return None if row.image is None else decode_row(row, plan.size, plan.channels, plan.fit)


def _leave_group(_: int) -> None:
    """Let signals to a group of processes, as of a terminal or of torchrun, reach only the one that answers them."""
    os.setpgrp()


def _unchanged(batch: Any) -> Any:
    return batch
