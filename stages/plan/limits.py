"""The limits that a training meets as it grows, and how far it is beyond each."""

from collections.abc import Iterator
from dataclasses import dataclass

from stages.plan.layout import Budget, Layout
from stages.plan.machine import short
from unclip.clip import CLIPConfig

RECORD = 1000
"""Bytes of a captioned image in each process beside its pixels and tokens: record, names, strings; about."""

DRAW = "more threads that draw"
STREAM = "read shards as they come"
CACHE = "--data.stream --data.embed online"


@dataclass(frozen=True)
class Surroundings:
    """Disk, memory and threads around the devices."""

    disk: float
    """Bytes that decoded images and the cache of embeddings may take."""
    ram: float
    """Bytes of memory for each process, of which every device has one."""
    loader: float
    """Bytes per second that a thread draws for its batches."""


@dataclass(frozen=True)
class Limit:
    part: str
    what: str
    needed: float
    available: float
    unit: str
    answer: str
    """Advice for a training that is beyond the limit."""

    @property
    def ratio(self) -> float:
        return self.needed / self.available

    def __str__(self) -> str:
        figures = f"{short(self.needed, self.unit)} of {short(self.available, self.unit)}"
        answer = self.answer if self.ratio > 1 else "holds"
        return f"{self.ratio:9.3g} x  {self.part:<13} {self.what:<33} {figures:<22} {answer}"


@dataclass(frozen=True)
class Stored:
    """Bytes of one captioned image that its first reader, at that size, needs; 0 for a part that is not the first."""

    cache: float = 0.0
    """In the cache of embeddings."""
    tokens: float = 0.0
    """Tokenised, in memory."""


def cache_bytes(config: CLIPConfig, tokens: int) -> float:
    """Bytes in the cache (stages/embed.py) of an image with a caption: embeddings, token features, their start."""
    return 4 * (2 * config.embed_dim + tokens * config.text.width) + 8


def find_limits(budget: Budget, stored: Stored, images: float, around: Surroundings) -> Iterator[Limit]:
    """The limits of one part, in any order. Every process draws its own share of a batch."""
    name = budget.name
    device = budget.device
    plain = budget.memory(Layout())
    best = budget.best()
    sizes = "smaller --model sizes" if best is None else best.options
    yield Limit(name, "memory of a device, DDP", plain, device.usable, "B", sizes)
    if table := budget.pairs():
        yield Limit(name, "table of the contrastive loss", table, device.usable, "B", "more devices")
    seconds = budget.share * budget.cost.batch / (around.loader * device.threads)
    yield Limit(name, "drawing a batch, against its step", seconds, budget.seconds(best or Layout()), "s", DRAW)
    disk = (
        ("decoded images on disk", budget.cost.pixels, STREAM),
        ("cache of embeddings on disk", stored.cache, CACHE),
    )
    for what, size, answer in disk:
        if size:
            yield Limit(name, what, images * size, around.disk, "B", answer)
    if stored.tokens:
        needed = images * (RECORD + stored.tokens)
        yield Limit(name, "captions in each process's memory", needed, around.ram, "B", STREAM)
