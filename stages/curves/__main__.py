"""Draw what trainings logged: loss, validation figures, learning rate, and images per second over the steps.

    python -m stages.curves checkpoints/run                          # outputs/curves/clip.png, prior.png, decoder.png
    python -m stages.curves checkpoints/run checkpoints/wide         # two pipelines over each other, stage by stage

A run is a pipeline's folder, one stage's folder in it, or a metrics.jsonl. While a stage trains, its own curves are
drawn beside its previews: train/curves.png.
"""

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip.cli import signals

    signals.install()

import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import tyro

from unclip.cli import options as cli
from unclip.errors import UserError
from unclip.store.files import write_atomically

PANELS = ("loss", "accuracy", "recall", "cosine", "distance")
"""Figures whose names hold one of these words are drawn over each other; any other has a panel of its own."""
TRAINING = ("loss", "chance_loss", "lr", "images_per_second")
"""What is drawn of the training's own figures; of the validation's all is."""
TITLES = {
    "lr": "learning rate",
    "images_per_second": "images per second",
    "distance": "distance (0: as images, 1: collapse)",
}
LINES = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))

Line = Mapping[str, float]
"""A line of metrics.jsonl."""


@dataclass(frozen=True)
class CurvesOptions:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of pipelines or of stages, or files metrics.jsonl."""
    out: Path = Path("outputs/curves")
    """Folder for the pictures, one per stage."""


def read_log(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl. What is broken is left out: a writer may have been killed."""
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def series(log: Sequence[Line]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each figure that is drawn; those that are not finite are left out."""
    found = defaultdict(lambda: ([], []))
    for line in log:
        for name, value in line.items():
            drawn = name in TRAINING or name.startswith("validation/")
            if drawn and isinstance(value, (int, float)) and math.isfinite(value):
                found[name][0].append(line["step"])
                found[name][1].append(value)
    return dict(found)


def panel(name: str) -> str:
    """The title of the panel that a figure is drawn in."""
    plain = name.removeprefix("validation/")
    word = next((word for word in PANELS if word in plain), plain)
    return TITLES.get(word, word.replace("_", " "))


def _label(name: str) -> str:
    return name.replace("validation/", "validation ").replace("_", " ")


def _style(name: str, kind: int, several: bool) -> dict[str, Any]:
    """How a panel's figure of that number is drawn, as matplotlib says it."""
    style = {"color": f"C{kind}", "label": _label(name), "marker": "." if name.startswith("validation/") else None}
    if several:
        return style | {"color": "black", "ls": LINES[kind % len(LINES)]}
    return style | {"color": "0.5", "ls": "--"} if name == "chance_loss" else style


def draw_curves(path: Path, logs: Mapping[str, Sequence[Line]], title: str) -> None:
    """Draw the logs of one or several runs, by their names, over each other into a PNG file.

    Uses no global state of matplotlib, and needs no display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = {run: series(log) for run, log in logs.items()}
    several = len(drawn) > 1  # then each run has a colour, and each figure a kind of line
    names = list(dict.fromkeys(name for own in drawn.values() for name in own))
    last = [TITLES["lr"], TITLES["images_per_second"]]
    headings = sorted(dict.fromkeys(map(panel, names)), key=lambda heading: (heading != "loss", heading in last))
    columns, rows = min(3, max(1, len(headings))), max(1, -(-len(headings) // 3))
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows), dpi=90, layout="constrained")
    figure.suptitle(title)
    for place, heading in enumerate(headings, 1):
        axes = figure.add_subplot(rows, columns, place, title=heading, xlabel="step")
        own = [name for name in names if panel(name) == heading]
        styles = {name: _style(name, kind, several) for kind, name in enumerate(own)}
        for (number, run), name in product(enumerate(drawn), own):
            if name in drawn[run]:
                colour = {"color": f"C{number}", "label": f"{run}: {_label(name)}"} if several else {}
                axes.plot(*drawn[run][name], **styles[name] | colour)
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
        if heading == TITLES["images_per_second"]:
            axes.set_ylim(bottom=0)
        if len(own) > 1:
            axes.legend(handles=[Line2D([], [], **styles[name]) for name in own], fontsize="x-small", handlelength=4)
    if several:
        runs = [Line2D([], [], color=f"C{number}", label=run) for number, run in enumerate(drawn)]
        figure.legend(handles=runs, loc="outside lower center", ncols=3)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_atomically(path, picture.getvalue(), durable=False)  # easily drawn again


def find_logs(run: Path) -> dict[str, Path]:
    """The metrics.jsonl of each stage of a run. Raises UserError if there is none."""
    if run.is_file():
        return {run.resolve().parents[1].name: run}
    found = sorted([*run.glob("train/metrics.jsonl"), *run.glob("*/train/metrics.jsonl")])
    if not found:
        raise UserError(
            f"{run} holds no train/metrics.jsonl; give the folder of a pipeline that was trained here, of one of its "
            "stages, or such a file"
        )
    return {log.resolve().parents[1].name: log for log in found}


def curves(options: CurvesOptions) -> list[Path]:
    """Draw a picture for each stage that any of the runs has. Returns their paths."""
    if not options.runs:
        raise UserError("name at least one run, such as: python -m stages.curves checkpoints/run")
    logs: dict[str, dict[str, Sequence[Line]]] = defaultdict(dict)
    for run in options.runs:
        for stage, path in find_logs(run).items():
            logs[stage][str(run)] = read_log(path)
    paths = []
    for stage, runs in logs.items():
        paths.append(options.out / f"{stage}.png")
        draw_curves(paths[-1], runs, stage if len(runs) > 1 else f"{stage} of {next(iter(runs))}")
    return paths


def main() -> None:
    print("curves: " + ", ".join(map(str, curves(cli.parse(CurvesOptions, __doc__)))))


if __name__ == "__main__":
    cli.run(main)
