"""How long to train each stage on a data set, and the commands for it."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data.sources import SourceConfig, as_options

BUDGET = 30 * 60
"""Seconds that the proposed trainings take together."""
SHARES = {"clip": (0.2, 64, 40), "prior": (0.2, 64, 100), "decoder": (0.6, 32, 200)}
"""Of each stage its share of the time, its batch size, and the passes over the images after which it learns no more."""
SMALLEST = 28
"""Pixels per side of the images that the presets are made for."""


@dataclass(frozen=True)
class Proposal:
    """How long to train a stage."""

    stage: str
    steps: int
    batch_size: int
    seconds: float


def propose(count: int, step_seconds: Mapping[str, float], budget: float = BUDGET) -> list[Proposal]:
    """Steps and batch size of each stage for `count` training images.

    `step_seconds` are what a step of each stage takes on this machine, at the size and the batch size of this data. The
    stages share the budget (seconds), but none passes over few images more often than it learns from them.
    """
    proposals = []
    for stage, (share, batch_size, passes) in SHARES.items():
        batch_size = min(batch_size, 2 ** (count.bit_length() - 1))  # no batch holds an image twice
        steps = min(share * budget / step_seconds[stage], passes * count / batch_size)
        steps = max(100, round(steps / 50) * 50)
        proposals.append(Proposal(stage, steps, batch_size, steps * step_seconds[stage]))
    return proposals


def seconds_per_step(size: int) -> dict[str, float]:
    """What a step of each stage takes on two CPU cores with preset "quick", from the README's times at 28x28 pixels.

    CLIP and the decoder work on every pixel, the prior on none.
    """
    return {"clip": 0.14 * _pixels(size), "prior": 0.16, "decoder": 0.31 * _pixels(size)}


def cost(size: int) -> str:
    """What a size costs, and how half of it is had."""
    if size <= SMALLEST:
        return f"no more work than the {SMALLEST}x{SMALLEST} that the presets are made for"
    said = f"a step of CLIP or of the decoder takes {_pixels(size):.1f} times as long as at {SMALLEST}x{SMALLEST}"
    half = size // 2
    return f"{said}, a quarter of that with --data.size {half}" if half >= SMALLEST else said


def _pixels(size: int) -> float:
    return size**2 / SMALLEST**2


def commands(config: SourceConfig, size: int, proposals: Iterable[Proposal]) -> list[str]:
    """The command lines of the trainers, with those options of the source that are set."""
    size = None if config.source == "fashion-mnist" else size  # which is used as it is
    options = as_options(replace(config, size=size, strict=False))
    named = config.source != "fashion-mnist" and re.sub(r"\W+", "-", Path(config.source).stem).strip("-").lower()
    name = named or "run"  # of Fashion-MNIST a pipeline is committed under its name
    return [
        f"python train_{one.stage}.py --out checkpoints/{name} {shlex.join(options)} "
        f"--train.steps {one.steps} --train.batch-size {one.batch_size}"
        for one in proposals
    ]
