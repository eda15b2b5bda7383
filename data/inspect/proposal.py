"""Proposals of trainings that suit a data set and this machine, from a few measured steps of each stage."""

import contextlib
import itertools
import json
import os
import re
import shlex
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
from unclip.registry import PARTS
from unclip.store.index import COMMITTED

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Recipe:
    """How to train a stage on a user's own images. The preset decides everything else."""

    share: float
    """Share of the time of all stages."""
    batch_size: int
    epochs: int
    """The most epochs: after this many the stage learns no more from the images."""


RECIPES = {
    "clip": Recipe(share=0.2, batch_size=64, epochs=48),
    "prior": Recipe(share=0.15, batch_size=64, epochs=60),
    "decoder": Recipe(share=0.65, batch_size=32, epochs=200),
    "upsampler": Recipe(share=0.12, batch_size=16, epochs=100),
}
"""The upsampler is trained only where the images are large enough: see `choose_sizes`. It needs less time than the
decoder, which has to settle what there is in an image."""
LARGE = (128, 64)
"""Sizes that an upsampler draws, the largest first."""
SMALL = 32
"""The decoder's size before an upsampler. In 24 minutes on two CPU cores a decoder of 64x64 learned the colours and
edges of drawings, but not which shapes there are and how many."""
BUDGET = 24 * 60
"""Seconds that the proposed trainings take together."""
LEAST_STEPS = 100
"""The fewest steps of a stage, however slow the machine is."""
WARM_UP = 0.08
"""The share of a training's steps during which the learning rate rises."""
VALIDATIONS = 4
"""Validations in each training; every second one draws previews too."""
SMALLEST = 28
"""Pixels per side of the images that the presets are made for."""

TRIAL_STEPS = 24
"""Steps that a trial measures."""
TRIAL_EVERY = 6
"""Steps that are timed together. The first of these groups warms up and does not count."""
TRIAL_IMAGES = 320
"""The most images of a trial. More would take longer to read and to embed, but no step would take longer."""


@dataclass(frozen=True)
class Speed:
    """The seconds that a stage takes on this machine."""

    step: float
    """Seconds per step."""
    rest: float
    """Seconds for everything else: starting, reading the data, validations and previews."""

    def times(self, factor: float) -> "Speed":
        return Speed(self.step * factor, self.rest * factor)


@dataclass(frozen=True)
class Proposal:
    """A training of one stage."""

    stage: str
    steps: int
    batch_size: int
    seconds: float
    """Its expected duration."""


def choose_sizes(sides: list[int], size: int | None, usual: int) -> tuple[int, int]:
    """Choose the decoder's size for images with these sides (the shorter ones, if they are cut), and a factor.

    The factor is that of an upsampler to train too, or 1 for none: images that are larger than the decoder's allow it.

    Args:
        size: the decoder's size if the user names it.
        usual: its size if no upsampler follows, unless it would enlarge the images.
    """
    choices = [(size, 4), (size, 2)] if size else [(SMALL, large // SMALL) for large in LARGE]
    for small, factor in choices:
        if are_as_large(sides, small * factor):
            return small, factor
    would_enlarge = not size and not are_as_large(sides, usual)
    return (SMALL if would_enlarge else usual), 1


def are_as_large(sides: list[int], size: int) -> bool:
    """Whether half of the images have this size, and nine in ten three quarters of it: few are blurred by enlarging."""
    ascending = sorted(sides)
    return ascending[len(sides) // 2] >= size and ascending[len(sides) // 10] >= 0.75 * size


def choose_batch_size(stage: str, count: int) -> int:
    """The recipe's batch size, or the largest power of two that holds none of `count` images twice."""
    return min(RECIPES[stage].batch_size, 2 ** (count.bit_length() - 1))


def propose_trainings(count: int, speeds: Mapping[str, Speed], budget: float = BUDGET) -> list[Proposal]:
    """Propose the steps of each stage in `speeds`, for `count` training images.

    The stages share the budget (seconds). With few images a stage stops earlier, after the epochs of its recipe.
    """
    budget -= sum(speed.rest for speed in speeds.values())
    shares = sum(RECIPES[stage].share for stage in speeds)
    proposals = []
    for stage, speed in speeds.items():
        recipe = RECIPES[stage]
        batch = choose_batch_size(stage, count)
        steps = min(recipe.share / shares * budget / speed.step, recipe.epochs * count / batch)
        steps = max(LEAST_STEPS, round(steps / 50) * 50)
        proposals.append(Proposal(stage, steps, batch, steps * speed.step + speed.rest))
    return proposals


def measure_speeds(
    config: SourceConfig, size: int, count: int, reading_seconds: float, factor: int = 1
) -> dict[str, Speed]:
    """Measure each stage's speed on `count` training images, which take `reading_seconds` to read.

    Each trainer takes a few steps in a temporary folder. Raises UserError, with the trainer's message, if one fails. A
    signal ends the trial and then this process.
    """
    speeds = {}
    with signals.postponed() as stop, tempfile.TemporaryDirectory() as folder:
        for stage in [name for name in RECIPES if factor > 1 or name != "upsampler"]:
            batch = choose_batch_size(stage, count)
            began = time.perf_counter()
            trial = trainer_command(stage, config, size, Path(folder), min(count, TRIAL_IMAGES), factor)
            trial += ["--train.steps", str(TRIAL_STEPS), "--train.batch-size", str(batch)]
            trial += ["--train.log-every", str(TRIAL_EVERY)]
            environment = os.environ | {"UNCLIP_CACHE": folder}
            status, errors = run_trial(interpreted(trial), environment, stop)
            if stop.number:
                return {}
            if status:
                message = (errors.strip().splitlines() or [f"exit status {status}"])[-1]
                raise UserError(f"a trial of the {stage} on this data failed: {message.removeprefix('error: ')}")
            lines = (Path(folder) / stage / "train" / "metrics.jsonl").read_text().splitlines()
            rates = [line["images_per_second"] for line in map(json.loads, lines) if "images_per_second" in line]
            step_seconds = sum(batch * TRIAL_EVERY / rate for rate in rates)
            rest = time.perf_counter() - began - step_seconds  # includes one validation and one preview
            # Other work slows steps down, so the fastest group is nearest to an idle machine.
            speeds[stage] = Speed(batch / max(rates[1:]), VALIDATIONS / 2 * rest + reading_seconds)
    # At most: embedding needs no backward pass.
    embedding_seconds = count * speeds["clip"].step / choose_batch_size("clip", count)
    speeds["prior"] = Speed(speeds["prior"].step, speeds["prior"].rest + embedding_seconds)
    return speeds


def run_trial(command: list[str], environment: dict[str, str], stop: signals.Stop) -> tuple[int, str]:
    """Run a program; returns its exit status and its standard error. A signal to this process kills the program."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, errors="replace", **streams) as child:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                errors = child.communicate(timeout=0.2)[1]
                return child.returncode, errors
            if stop.number:
                child.kill()


def interpreted(arguments: list[str]) -> list[str]:
    """The command that gives the arguments to this interpreter: a module, or one of this project's programs."""
    if arguments[0] == "-m":
        return [sys.executable, *arguments]
    return [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]


def trainer_command(
    stage: str, config: SourceConfig, size: int, out: Path, limit: int | None = None, factor: int = 1
) -> list[str]:
    """The start of a trainer's command: its folder, and the options of the source that are set."""
    set_size = None if has_fixed_shape(config.source) else size
    options = as_options(replace(config, size=set_size, limit=limit or config.limit, strict=False))
    program = ["-m", "stages.train", stage] if PARTS[stage].optional else [f"train_{stage}.py"]
    return [*program, "--out", str(out), *options, *suited_options(stage, size, factor)]


def suited_options(stage: str, size: int, factor: int) -> list[str]:
    """Options that suit a user's own images better than the presets, which are made for many images of one thing."""
    if stage == "clip":
        # With smaller patches than the preset's and one block of text instead of two, more drawings came out right of
        # which colour and shape were never seen together. Shifts made that worse on one set of drawings.
        patch = max(1, round(size / 8))
        return ["--model.vision.patch-size", str(patch), "--model.text.layers", "1", "--augment.shift", "0"]
    if stage == "decoder":
        # The first steps settle how many things there are, and where: guide them too. Uniform times draw more high
        # noise than the preset's levels, and low noise has less weight than with the usual gamma of 5: so two things
        # came out as two more often, on one set of drawings and in one training each, at the price of faint grain.
        guided = ["--sampling.guidance-interval", "0.3", "1.0"]
        return [*guided, "--log-sigma", "None", "--min-snr", "2"]
    if stage == "upsampler":
        return ["--model.factor", str(factor)]
    return []


def training_command(proposal: Proposal, config: SourceConfig, size: int, out: Path, factor: int = 1) -> list[str]:
    """The arguments of the Python interpreter. Warm-up, validations and previews are in proportion to the steps."""
    steps = proposal.steps
    validation_interval = -(-steps // VALIDATIONS)
    options = {
        "steps": steps,
        "batch-size": proposal.batch_size,
        "warmup": round(WARM_UP * steps),
        "evaluate-every": validation_interval,
        "preview-every": 2 * validation_interval,
    }
    words = [word for name, value in options.items() for word in (f"--train.{name}", str(value))]
    return trainer_command(proposal.stage, config, size, out, None, factor) + words


def format_command(arguments: list[str]) -> str:
    """A command for a shell, on several lines; an option and its value stay together."""
    words = shlex.join(["python", *arguments]).split(" --")
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > 100:
            lines[-1] += " \\"
            lines.append("    ")
        lines[-1] += f" --{word}" if lines[-1].strip() else f"--{word}"
    return "\n".join(lines)


def pipeline_folder(config: SourceConfig) -> Path:
    """The folder of the pipeline that is trained on a source: checkpoints/ and the source's name."""
    if config.source == SourceConfig().source:
        return Path("checkpoints") / "run"
    name = re.sub(r"\W+", "-", Path(config.source).stem).strip("-").lower() or "run"
    return Path("checkpoints") / (f"my-{name}" if name in COMMITTED else name)


def unused_folder(folder: Path) -> Path:
    """The folder; or, if a pipeline was trained into it, the first of FOLDER-2, FOLDER-3, ... that holds none."""
    others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], others) if not any((path / part).exists() for part in PARTS))


def describe_cost(size: int) -> str:
    """The cost of a size in words, and how to halve it. CLIP and the decoder work on pixels; the prior does not."""
    if size <= SMALLEST:
        return f"no more work than the {SMALLEST}x{SMALLEST} that the presets are made for"
    factor = size**2 / SMALLEST**2
    cost = f"a step of CLIP or of the decoder takes about {factor:.1f} times as long as at {SMALLEST}x{SMALLEST}"
    half = size // 2
    return f"{cost}, a quarter of that with --data.size {half}" if half >= SMALLEST else cost
