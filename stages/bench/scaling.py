"""Weak scaling: what several processes of one thread train in a second, against one, each with as large a batch.

    python -m stages.bench.scaling                # CLIP, preset quick, two processes against one
    python -m stages.bench.scaling --ranks 4 --rounds 5

Prints the images per second of each training, and the ratios of those that followed each other.
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
BATCH = 64
"""Images per step of each process."""
EVERY = 10
"""Steps between two measurements."""


@dataclass(frozen=True)
class ScalingOptions:
    ranks: int = bounded(2, 2, 1024)
    """Processes that are measured against one."""
    rounds: int = bounded(3, 1, 100)
    """Trainings of each kind, in turns; medians are told."""
    steps: int = bounded(60, 2 * EVERY, 10**6)
    """Steps of each training, of which the first ten are not measured."""


def images_per_second(ranks: int, steps: int) -> float:
    """The median over a short training of CLIP, each rank with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
        done = subprocess.run(
            [sys.executable, *launch, ROOT / "train_clip.py", "--out", folder, "--train.device", "cpu",
             "--train.batch-size", str(BATCH * ranks), "--train.steps", str(steps), "--train.log-every", str(EVERY),
             "--train.preview-every", str(steps), "--train.evaluate-every", str(steps)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise UserError(f"the training with {ranks} ranks failed: {done.stderr.strip().splitlines()[-1]}")
        lines = (Path(folder) / "clip" / "train" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line).get("images_per_second") for line in lines]
    return median([rate for rate in rates if rate][1:])


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(ScalingOptions, __doc__, argv=argv)
    rates: dict[int, list[float]] = {1: [], options.ranks: []}
    for _ in range(options.rounds):
        for ranks, measured in rates.items():
            measured.append(images_per_second(ranks, options.steps))
            print(f"{ranks} of one thread: {measured[-1]:.1f} images per second", flush=True)
    ratios = [many / single for single, many in zip(*rates.values(), strict=True)]
    print(f"{options.ranks} against 1: {median(ratios):.2f} times the images ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    run(main)
