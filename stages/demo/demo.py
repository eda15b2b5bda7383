"""Train a pipeline on your own captioned images and sample their captions, in half an hour on two CPU cores.

    python -m stages.demo path/to/folder               # or another source; make demo DATA=path/to/folder is the same
    python -m stages.demo path/to/folder --data.size 32 --out checkpoints/mine

Inspects the images, measures how fast this machine trains on them, trains the stages in about 24 minutes, and samples
captions of the validation images: outputs/demo.png. If most images have 64 pixels or more, an upsampler is trained too.
The same command again resumes after an interruption.
"""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from data.inspect.inspection import InspectOptions, Measurements, inspect_source, refuse_second_source
from data.inspect.proposal import (
    BUDGET,
    Proposal,
    format_command,
    interpreted,
    pipeline_folder,
    propose_trainings,
    training_command,
)
from data.provenance import compare_source
from data.source_config import SourceConfig
from data.sources import load_splits
from data.variety import choose_varied
from unclip.cli import signals
from unclip.cli.options import parse, read_early_options
from unclip.errors import UserError
from unclip.store.files import write_atomically
from unclip.store.sealed_json import read_record

PICTURES = Path("outputs/demo")
LEAST_TIME = 0.75
"""The share of their time in the first plan that the remaining stages together keep if earlier ones took longer."""


@dataclass(frozen=True)
class DemoOptions:
    source: Annotated[str, tyro.conf.Positional]
    """Anything that --data takes: a folder, a table, an array or tar file, emoji, shapes, cifar10, fashion-mnist, or
    a Hub set."""
    out: Path | None = None
    """Folder of the pipeline (default: checkpoints/ and the name of the source)."""
    data: SourceConfig = field(default_factory=SourceConfig)


def run_demo(options: DemoOptions) -> None:
    """Inspect the source, train the stages, and sample.

    Raises UserError if the source has too few images, or if the folder holds a pipeline of other data.
    """
    config = replace(options.data, source=options.source)
    out = options.out or pipeline_folder(config)
    differences = []
    if not compare_source(out, config, differences.append):
        raise UserError(f"{differences[0]}; choose another --out, or delete {out}")
    measurements = inspect_source(InspectOptions(options.source, out=PICTURES / "data", data=config))
    if measurements is None:
        raise UserError(f"{options.source} has too few images to train on")
    train_stages(measurements, config, out)
    captions = PICTURES / "captions.txt"
    write_atomically(captions, choose_captions(config))
    run_program(
        ["sample.py", "--checkpoint", str(out), "--captions-file", str(captions), "--n", "8", "--out", str(PICTURES)]
    )
    shutil.copy(PICTURES / "grid.png", f"{PICTURES}.png")
    print(f"Look at {PICTURES}.png; the pipeline is in {out}")


def train_stages(measurements: Measurements, config: SourceConfig, out: Path) -> None:
    """Train the stages in about BUDGET.

    After each stage the remaining ones are planned anew, for the time that is left; for LEAST_TIME of their time in the
    first plan if that is more.
    """
    speeds = dict(measurements.speeds)
    first_plan = {one.stage: one.seconds for one in propose_trainings(measurements.count, speeds, BUDGET)}
    slowdown = 1.0  # of the machine, as it did less when it was measured
    deadline = time.monotonic() + BUDGET
    while speeds:
        began = time.monotonic()
        slowed = {stage: speed.times(slowdown) for stage, speed in speeds.items()}
        left = max(deadline - began, LEAST_TIME * sum(first_plan[stage] for stage in speeds))
        planned = propose_trainings(measurements.count, slowed, left)[0]
        proposal = read_begun_training(out, planned.stage) or planned
        run_program(training_command(proposal, config, measurements.size, out, measurements.factor))
        if proposal is planned:
            slowdown = max(1.0, slowdown * (time.monotonic() - began) / planned.seconds)
        del speeds[planned.stage]


def read_begun_training(out: Path, stage: str) -> Proposal | None:
    """Return the training of a stage that has begun, which goes on as it was planned; None if it has not."""
    record = out / stage / "train" / "run.json"
    if not record.exists():
        return None
    train = read_record(record)["training"]["train"]
    return Proposal(stage, train["steps"], train["batch_size"], 0)


def run_program(arguments: list[str]) -> None:
    """Run one of this project's programs. If it fails, exit with its status.

    The program has a session of its own, as a terminal would send it a signal too, and a second signal ends it at once.
    Signals are handed on once, so that it can save.
    """
    print(format_command(arguments), flush=True)
    with signals.postponed() as stop:
        child = subprocess.Popen(interpreted(arguments), start_new_session=True)
        is_signalled = False
        while child.poll() is None:
            if stop.number and not is_signalled:
                child.send_signal(stop.number)
                is_signalled = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
    if child.returncode:
        sys.exit(abs(child.returncode))


def choose_captions(config: SourceConfig) -> str:
    """Return ten varied captions of the validation images, one per line."""
    [validation] = load_splits(config, ["validation"])
    captions = choose_varied(validation.captions, 10)
    return "".join(f"{' '.join(caption.split())}\n" for caption in captions)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(DemoOptions, __doc__, argv=argv)
    refuse_second_source(options.source, read_early_options(argv).data)
    run_demo(options)
