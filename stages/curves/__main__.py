"""Draw the curves of trainings: losses, validation figures, learning rate and images per second over the steps.

    python -m stages.curves checkpoints/run                          # outputs/curves/clip.png, prior.png, decoder.png
    python -m stages.curves checkpoints/run checkpoints/wide         # two pipelines in one picture for each stage

A run is the folder of a pipeline, the folder of one of its stages, or a file metrics.jsonl. While a stage trains, its
curves are also drawn beside its previews, to train/curves.png.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from stages.curves.drawing import LogLine, draw_curves, read_metrics
from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.errors import UserError


@dataclass(frozen=True)
class CurvesOptions:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of pipelines or of stages, or files metrics.jsonl."""
    out: Path = Path("outputs/curves")
    """Folder for the pictures, one for each stage."""


def find_logs(run: Path) -> dict[str, Path]:
    """Return the metrics.jsonl of each stage of a run. Raises UserError if there is none."""
    if run.is_file():
        return {run.resolve().parents[1].name: run}
    paths = sorted([*run.glob("train/metrics.jsonl"), *run.glob("*/train/metrics.jsonl")])
    if not paths:
        raise UserError(
            f"{run} holds no train/metrics.jsonl; give the folder of a pipeline that was trained here, the folder of "
            "one of its stages, or a file metrics.jsonl"
        )
    return {path.resolve().parents[1].name: path for path in paths}


def draw_runs(options: CurvesOptions) -> list[Path]:
    """Draw a picture for each stage that any of the runs has. Return the paths of the pictures."""
    if not options.runs:
        raise UserError("name at least one run, such as: python -m stages.curves checkpoints/run")
    logs: dict[str, dict[str, Sequence[LogLine]]] = defaultdict(dict)
    for folder in options.runs:
        for stage, path in find_logs(folder).items():
            logs[stage][str(folder)] = read_metrics(path)
    paths = []
    for stage, runs in logs.items():
        path = options.out / f"{stage}.png"
        draw_curves(path, runs, stage if len(runs) > 1 else f"{stage} of {next(iter(runs))}")
        paths.append(path)
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    paths = draw_runs(parse(CurvesOptions, __doc__, argv=argv))
    print("curves: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    run(main)
