"""From your own captioned images to pictures of what their captions say, in at most half an hour on two CPU cores.

    python -m stages.demo path/to/folder               # or whatever else --data takes; make demo DATA=path/to/folder
    python -m stages.demo path/to/folder --data.size 32 --out checkpoints/mine

Looks at the images, measures how fast this machine trains on them, trains the three stages, and draws captions of the
validation images: outputs/demo.png. The same command again goes on with what was interrupted.
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
from data.inspect.proposal import BUDGET, Proposal, format_command, pipeline_folder, propose_trainings, training_command
from data.provenance import compare_source
from data.sources import SourceConfig, load
from data.variety import choose_varied
from unclip.cli import signals
from unclip.cli.options import parse, read_early_options
from unclip.errors import UserError
from unclip.store.files import write_atomically
from unclip.store.sealed_json import read_record

ROOT = Path(__file__).resolve().parents[2]
PICTURES = Path("outputs/demo")


@dataclass(frozen=True)
class DemoOptions:
    source: Annotated[str, tyro.conf.Positional]
    """What --data takes: a folder, a table, an array or tar file, emoji, cifar10, fashion-mnist, or a Hub set."""
    out: Path | None = None
    """Folder of the pipeline (default: checkpoints/ and the name of the source)."""
    data: SourceConfig = field(default_factory=SourceConfig)


def run(arguments: list[str]) -> None:
    """Run one of our programs, and leave with its exit status if it fails; signals are handed on, so that it can save.

    It has a session of its own, as a terminal would send it a signal too, and a second one ends it at once.
    """
    print(format_command(arguments), flush=True)
    program = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    with signals.postponed() as stop:
        child, told = subprocess.Popen(program, start_new_session=True), False
        while child.poll() is None:
            if stop.number and not told:
                child.send_signal(stop.number)
                told = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
    if child.returncode:
        sys.exit(abs(child.returncode))


def begun(out: Path, stage: str) -> Proposal | None:
    """The training that a stage has begun, and which goes on as it was planned."""
    record = out / stage / "train" / "run.json"
    if not record.exists():
        return None
    train = read_record(record)["training"]["train"]
    return Proposal(stage, train["steps"], train["batch_size"], 0)


def train(found: Measurements, config: SourceConfig, out: Path) -> None:
    """Train the stages within the budget: after each one the rest is planned anew, in the time that is left."""
    speeds, end = dict(found.speeds), time.monotonic() + BUDGET
    while speeds:
        began = time.monotonic()
        planned = propose_trainings(found.count, speeds, end - began)[0]
        proposal = begun(out, planned.stage) or planned
        run(training_command(proposal, config, found.size, out))
        slower = 1.0
        if proposal is planned:  # than measured: a machine may have become busy since
            slower = max(1.0, (time.monotonic() - began) / planned.seconds)
        speeds = {stage: speed.times(slower) for stage, speed in speeds.items() if stage != planned.stage}


def demo(options: DemoOptions) -> None:
    config = replace(options.data, source=options.source)
    out, told = options.out or pipeline_folder(config), []
    if not compare_source(out, config, told.append):
        raise UserError(f"{told[0]}; choose another --out, or delete {out}")
    found = inspect_source(InspectOptions(options.source, out=PICTURES / "data", data=config))
    if found is None:
        raise UserError(f"{options.source} has too few images to train on")
    train(found, config, out)
    [validation] = load(config, ["validation"])
    captions = PICTURES / "captions.txt"
    write_atomically(captions, "".join(f"{' '.join(c.split())}\n" for c in choose_varied(validation.captions, 10)))
    run(["sample.py", "--checkpoint", str(out), "--captions-file", str(captions), "--n", "8", "--out", str(PICTURES)])
    shutil.copy(PICTURES / "grid.png", f"{PICTURES}.png")
    print(f"Look at {PICTURES}.png; the pipeline is in {out}")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(DemoOptions, __doc__, argv=argv)
    refuse_second_source(options.source, read_early_options(argv).data)
    demo(options)
