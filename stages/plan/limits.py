"""What breaks first as a run grows: each limit by how far the run is beyond it."""

from collections.abc import Iterator
from dataclasses import dataclass

from stages.plan.layout import Budget, Way
from stages.plan.machine import short
from unclip.clip import CLIPConfig

ROW = 1000
"""Bytes of a captioned image in each process beside its pixels and tokens: record, names, strings; about."""

ALONE, SHARED = "more threads that draw", "draw each process's share alone"
STREAM = "read shards as they come"
CACHE = "keep it in fewer bytes"


@dataclass(frozen=True)
class Surroundings:
    """What there is beside the devices."""

    disk: float
    """Bytes that decoded images and the cache of embeddings may take."""
    ram: float
    """Bytes of memory for each process, of which every device has one."""
    loader: float
    """Bytes per second that a thread draws of its batches."""


@dataclass(frozen=True)
class Limit:
    stage: str
    what: str
    needed: float
    there: float
    unit: str
    answer: str
    """What to do about it."""

    @property
    def ratio(self) -> float:
        return self.needed / self.there

    def __str__(self) -> str:
        figures = f"{short(self.needed, self.unit)} of {short(self.there, self.unit)}"
        answer = self.answer if self.ratio > 1 else "holds"
        return f"{self.ratio:9.3g} x  {self.stage:<8} {self.what:<33} {figures:<22} {answer}"


@dataclass(frozen=True)
class Example:
    """Bytes of one captioned image as a stage is the first to need them; 0 for what it has no need of."""

    pixels: int = 0
    """Decoded."""
    cached: float = 0.0
    """In the cache of embeddings."""
    tokens: float = 0.0
    """Tokenised, in memory."""
    drawn: float = 0.0
    """Read or drawn at random for a step, beside the pixels."""


def cached(config: CLIPConfig, tokens: int) -> float:
    """Bytes in the cache (stages/embed.py) of an image with a caption: embeddings, tokens' encodings, their start."""
    return 4 * (2 * config.embed_dim + tokens * config.text.width) + 8


def limits(budget: Budget, example: Example, images: float, around: Surroundings) -> Iterator[Limit]:
    """A stage's, in any order. Every process draws the whole batch, of which it keeps its share."""
    name, device = budget.name, budget.device
    plain, best = budget.memory(Way()), budget.best()
    sizes = "smaller --model sizes" if best is None else best.options
    yield Limit(name, "memory of a device, DDP", plain, device.usable, "B", sizes)
    if table := budget.contrastive():
        yield Limit(name, "table of the contrastive loss", table, device.usable, "B", "more devices")
    drawn = budget.batch_size * (example.pixels + example.drawn) / (around.loader * device.threads)
    answer = ALONE if budget.devices == 1 else SHARED
    yield Limit(name, "drawing a batch, against its step", drawn, budget.seconds(best or Way()), "s", answer)
    disk = [("decoded images on disk", example.pixels, STREAM), ("cache of embeddings on disk", example.cached, CACHE)]
    for what, size, answer in disk:
        if size:
            yield Limit(name, what, images * size, around.disk, "B", answer)
    if example.tokens:
        yield Limit(name, "captions in each process's memory", images * (ROW + example.tokens), around.ram, "B", STREAM)
