"""Weak scaling: how many images per second several processes train on against one, each with an equal batch.

    python -m stages.bench.scaling                # CLIP, preset quick, two processes against one
    python -m stages.bench.scaling --ranks 4 --rounds 5

Each process has one thread. Prints the images per second of each training, and the ratios round by round.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.errors import UserError
from unclip.fields import bounded

ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZE = 64
"""Images per step of each process."""
LOG_EVERY = 10
"""Steps between two measurements."""


@dataclass(frozen=True)
class ScalingOptions:
    ranks: int = bounded(2, 2, 1024)
    """Processes to measure against one."""
    rounds: int = bounded(3, 1, 100)
    """Trainings of each kind, in turns, of which the medians are printed."""
    steps: int = bounded(60, 2 * LOG_EVERY, 10**6)
    """Steps of each training, of which the first ten are not measured."""


def measure_images_per_second(ranks: int, steps: int) -> float:
    """Train CLIP for some steps, each rank with one thread. Return the median rate."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        options = {
            "--out": folder,
            "--train.device": "cpu",
            "--train.batch-size": BATCH_SIZE * ranks,
            "--train.steps": steps,
            "--train.log-every": LOG_EVERY,
            "--train.preview-every": steps,
            "--train.evaluate-every": steps,
        }
        arguments = [str(word) for option in options.items() for word in option]
        finished = subprocess.run(
            [*launch, str(ROOT / "train_clip.py"), *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if finished.returncode:
            raise UserError(f"the training with {ranks} ranks failed: {finished.stderr.strip().splitlines()[-1]}")
        lines = (Path(folder) / "clip" / "train" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line).get("images_per_second") for line in lines]
    return median([rate for rate in rates if rate][1:])


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(ScalingOptions, __doc__, argv=argv)
    rates: dict[int, list[float]] = {1: [], options.ranks: []}
    for _ in range(options.rounds):
        for ranks, rates_of_ranks in rates.items():
            rate = measure_images_per_second(ranks, options.steps)
            rates_of_ranks.append(rate)
            print(f"{ranks} of one thread: {rate:.1f} images per second", flush=True)
    ratios = [several / single for single, several in zip(*rates.values(), strict=True)]
    print(f"{options.ranks} against 1: {median(ratios):.2f} times the images ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    run(main)
