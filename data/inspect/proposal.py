"""Trainings that suit a data set and this machine, planned from a few steps that each trainer really takes here."""

import contextlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data.source_config import SourceConfig, as_options
from data.sources import has_fixed_shape
from unclip.cli import signals
from unclip.errors import UserError
from unclip.store.index import COMMITTED

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Recipe:
    """How a stage is trained on a data set of one's own. What is not said here, its preset says."""

    share: float
    """Of the time of all stages."""
    batch_size: int
    epochs: int
    """Over the images, at most: after so many the stage learns no more from them."""


RECIPES = {
    "clip": Recipe(share=0.2, batch_size=64, epochs=16),
    "prior": Recipe(share=0.15, batch_size=64, epochs=60),
    "decoder": Recipe(share=0.65, batch_size=32, epochs=200),
}
BUDGET = 24 * 60
"""Seconds that the proposed trainings take together."""
LEAST_STEPS = 100
"""Of each stage, however slow the machine is."""
WARM_UP = 0.08
"""The share of a training's steps that the learning rate rises."""
VALIDATIONS = 4
"""Of each training; every second one draws previews too."""
SMALLEST = 28
"""Pixels per side of the images that the presets are made for."""

TRIAL_STEPS, TRIAL_EVERY = 12, 3
"""Steps that are measured, and how many of them are timed together; the first of these, which warm up, do not count."""
TRIAL_IMAGES = 320
"""Images that a trial is trained on at most: to read and to embed more takes longer, but no step does."""


@dataclass(frozen=True)
class Speed:
    """What a stage takes on this machine, in seconds."""

    step: float
    rest: float
    """All that is no step: to start, to read the data, to validate, and to draw."""

    def times(self, factor: float) -> "Speed":
        return Speed(self.step * factor, self.rest * factor)


@dataclass(frozen=True)
class Proposal:
    """How long to train a stage."""

    stage: str
    steps: int
    batch_size: int
    seconds: float
    """That it is expected to take."""


def choose_batch_size(stage: str, count: int) -> int:
    """No batch holds one of `count` images twice."""
    return min(RECIPES[stage].batch_size, 2 ** (count.bit_length() - 1))


def propose_trainings(count: int, speeds: Mapping[str, Speed], budget: float = BUDGET) -> list[Proposal]:
    """Steps of each of these stages for `count` training images.

    The stages share the budget (seconds), but none passes over few images more often than it learns from them.
    """
    budget -= sum(speed.rest for speed in speeds.values())
    shares = sum(RECIPES[stage].share for stage in speeds)
    proposals = []
    for stage, speed in speeds.items():
        recipe, batch = RECIPES[stage], choose_batch_size(stage, count)
        steps = min(recipe.share / shares * budget / speed.step, recipe.epochs * count / batch)
        steps = max(LEAST_STEPS, round(steps / 50) * 50)
        proposals.append(Proposal(stage, steps, batch, steps * speed.step + speed.rest))
    return proposals


def measure_speeds(config: SourceConfig, size: int, count: int, reading: float) -> dict[str, Speed]:
    """The speed of each stage on `count` training images of this data, which takes `reading` seconds to read.

    Each trainer takes a few steps in a folder that is thrown away. Raises UserError, with its words, if one fails. A
    signal ends the trial too, and then this process.
    """
    speeds = {}
    with signals.postponed() as stop, tempfile.TemporaryDirectory() as folder:
        for stage in RECIPES:
            batch, began = choose_batch_size(stage, count), time.perf_counter()
            trial = trainer_command(stage, config, size, Path(folder), min(count, TRIAL_IMAGES))
            trial += ["--train.steps", str(TRIAL_STEPS), "--train.batch-size", str(batch)]
            trial += ["--train.log-every", str(TRIAL_EVERY)]
            environment = os.environ | {"UNCLIP_CACHE": folder}
            run = [sys.executable, str(ROOT / trial[0]), *trial[1:]]
            status, errors = run_trial(run, environment, stop)
            if stop.number:
                return {}
            if status:
                said = (errors.strip().splitlines() or [f"exit status {status}"])[-1]
                raise UserError(f"a trial of train_{stage}.py on this data failed: {said.removeprefix('error: ')}")
            lines = (Path(folder) / stage / "train" / "metrics.jsonl").read_text().splitlines()
            rates = [line["images_per_second"] for line in map(json.loads, lines) if "images_per_second" in line]
            steps = sum(batch * TRIAL_EVERY / rate for rate in rates)
            rest = time.perf_counter() - began - steps  # with one validation and one preview
            speeds[stage] = Speed(batch / statistics.median(rates[1:]), VALIDATIONS / 2 * rest + reading)
    embedding = count * speeds["clip"].step / choose_batch_size("clip", count)  # less: a step also goes backwards
    speeds["prior"] = Speed(speeds["prior"].step, speeds["prior"].rest + embedding)
    return speeds


def run_trial(command: list[str], environment: dict[str, str], stop: signals.Stop) -> tuple[int, str]:
    """The exit status of a program, and what it says of errors. It is killed when this process is asked to end."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, errors="replace", **quiet) as child:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                errors = child.communicate(timeout=0.2)[1]
                return child.returncode, errors
            if stop.number:
                child.kill()


def trainer_command(stage: str, config: SourceConfig, size: int, out: Path, limit: int | None = None) -> list[str]:
    """The start of a trainer's command: those options of the source that are set, and where to train."""
    set_size = None if has_fixed_shape(config.source) else size
    options = as_options(replace(config, size=set_size, limit=limit or config.limit, strict=False))
    return [f"train_{stage}.py", "--out", str(out), *options, *suited_options(stage, size)]


def suited_options(stage: str, size: int) -> list[str]:
    """What suits images of one's own better than the presets, which are made for many images of one thing each."""
    if stage == "clip":
        # By the presets' larger patches, unshifted, it learns pairs by heart: of a shape in a colour that it has not
        # seen it in, it knows the colour alone.
        patch, shift = max(1, round(size / 8)), max(1, size // 16)
        return ["--model.vision.patch-size", str(patch), "--augment.shift", str(shift)]
    if stage == "decoder":  # how many things there are, and where, is settled in the first steps: they are guided too
        return ["--sampling.guidance-interval", "0.3", "1.0"]
    return []


def training_command(proposal: Proposal, config: SourceConfig, size: int, out: Path) -> list[str]:
    """What to give to the Python interpreter. Warm-up, validations and previews keep pace with the steps."""
    steps, every = proposal.steps, -(-proposal.steps // VALIDATIONS)
    options = {
        "steps": steps,
        "batch-size": proposal.batch_size,
        "warmup": round(WARM_UP * steps),
        "evaluate-every": every,
        "preview-every": 2 * every,
    }
    given = [word for name, value in options.items() for word in (f"--train.{name}", str(value))]
    return trainer_command(proposal.stage, config, size, out) + given


def format_command(arguments: list[str]) -> str:
    """A command as one types it, on several lines, no option apart from its value."""
    words = shlex.join(["python", *arguments]).split(" --")
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > 100:
            lines[-1] += " \\"
            lines.append("    ")
        lines[-1] += f" --{word}" if lines[-1].strip() else f"--{word}"
    return "\n".join(lines)


def pipeline_folder(config: SourceConfig) -> Path:
    """Where to train on a source."""
    if config.source == SourceConfig().source:
        return Path("checkpoints") / "run"
    named = re.sub(r"\W+", "-", Path(config.source).stem).strip("-").lower() or "run"
    return Path("checkpoints") / (f"my-{named}" if named in COMMITTED else named)


def describe_cost(size: int) -> str:
    """What a size costs, and how half of it is had: CLIP and the decoder work on every pixel, the prior on none."""
    if size <= SMALLEST:
        return f"no more work than the {SMALLEST}x{SMALLEST} that the presets are made for"
    more = size**2 / SMALLEST**2
    said = f"a step of CLIP or of the decoder takes about {more:.1f} times as long as at {SMALLEST}x{SMALLEST}"
    half = size // 2
    return f"{said}, a quarter of that with --data.size {half}" if half >= SMALLEST else said
