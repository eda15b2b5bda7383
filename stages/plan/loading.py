"""The reading of a stream beside the steps: cores, bytes per second, and embeddings that are stored or computed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from stages.plan.layout import Budget, Layout

RATE_64 = 1600.0
RATE_256 = 480.0
"""Rows of 64x64 and of 256x256 JPEG files that a second of one core takes to read and decode, as measured by
`python -m data.stream.rate` on a server CPU of 2.5 GHz, two workers beside other work."""
PIXEL_SECONDS = (1 / RATE_256 - 1 / RATE_64) / (256**2 - 64**2)
ROW_SECONDS = 1 / RATE_64 - 64**2 * PIXEL_SECONDS
PIXEL_BYTES = 0.45
"""Bytes per pixel of a JPEG file of quality 95."""
ROW_BYTES = 3000
"""Bytes of a row beside its pixels: the head of its file, its caption, and what a .tar adds."""


def row_seconds(size: int) -> float:
    """Seconds of a core to read and decode a row whose image has `size` x `size` pixels."""
    return ROW_SECONDS + PIXEL_SECONDS * size**2


def row_bytes(size: int) -> float:
    """Bytes of a row in a shard."""
    return ROW_BYTES + PIXEL_BYTES * size**2


@dataclass(frozen=True)
class Reading:
    """The rows that all devices together take for one part."""

    budget: Budget
    size: int
    """Height and width of the images in the shards, which are decoded whole."""

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.budget.batch_size / self.budget.seconds(self.budget.best() or Layout())

    @property
    def cores(self) -> float:
        return self.rate * row_seconds(self.size)

    @property
    def workers(self) -> int:
        """Processes that read for each device."""
        return math.ceil(self.cores / self.budget.devices)

    @property
    def network(self) -> float:
        """Bytes of shards per second."""
        return self.rate * row_bytes(self.size)


@dataclass(frozen=True)
class Embeddings:
    """The embeddings that all parts but CLIP read: stored beforehand, or computed beside the steps (online)."""

    images: float
    row: float
    """Bytes of an image and its caption where they are stored."""
    operations: float
    """Operations to embed an image and its caption."""
    sets: int = 1
    """How often all images are stored: once for each size at which parts read them."""

    @property
    def stored_bytes(self) -> float:
        return self.sets * self.images * self.row

    def stored_seconds(self, budget: Budget) -> float:
        """Seconds in which the devices of a budget embed all images beforehand."""
        return self.sets * self.images * self.operations / budget.rate

    def online_seconds(self, budgets: Iterable[Budget]) -> float:
        """Seconds by which the trainings of parts take longer, as they embed the images of each step."""
        return sum(budget.steps * budget.batch_size * self.operations / budget.rate for budget in budgets)

    def cheaper(self, budgets: list[Budget], disk: float) -> tuple[str, str]:
        """The value of --data.embed that takes less time of those that the disk allows, and why."""
        if self.stored_bytes > disk:
            return "online", "the disk does not hold the stored ones"
        if self.online_seconds(budgets) < self.stored_seconds(budgets[0]):
            return "online", "the trainings see fewer images than would be stored"
        return "stored", "the trainings see images more often than they would be embedded to be stored"
