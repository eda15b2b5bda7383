"""Read the figures that a training logged, and draw them over its steps."""

import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from unclip.store.files import write_atomically

SHARED_PANELS = ("loss", "accuracy", "recall", "cosine", "distance")
"""Figures whose names contain one of these words share a panel. Every other figure has a panel of its own."""
TRAINING_FIGURES = ("loss", "chance_loss", "lr", "images_per_second")
"""The training's own figures that are drawn. All of the validation's are drawn."""
TITLES = {
    "lr": "learning rate",
    "images_per_second": "images per second",
    "distance": "distance (0: as images, 1: collapse)",
}
LINE_STYLES = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))

LogLine = Mapping[str, float]
"""One line of metrics.jsonl: figures by name, among them `step`."""


def read_metrics(path: Path) -> list[LogLine]:
    """Return the lines of a metrics.jsonl without broken ones: the program that wrote it may have been killed."""
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def figure_series(log: Sequence[LogLine]) -> dict[str, tuple[list[int], list[float]]]:
    """Return the steps and the values of each figure to draw. Values that are not finite are left out."""
    series = defaultdict(lambda: ([], []))
    for line in log:
        for name, value in line.items():
            is_drawn = name in TRAINING_FIGURES or name.startswith("validation/")
            if is_drawn and isinstance(value, (int, float)) and math.isfinite(value):
                steps, values = series[name]
                steps.append(line["step"])
                values.append(value)
    return dict(series)


def panel_title(name: str) -> str:
    """Return the title of the panel that a figure belongs to."""
    plain_name = name.removeprefix("validation/")
    topic = next((word for word in SHARED_PANELS if word in plain_name), plain_name)
    return TITLES.get(topic, topic.replace("_", " "))


def draw_curves(path: Path, logs: Mapping[str, Sequence[LogLine]], title: str) -> None:
    """Draw the logs of one or more runs, given by their names, over each other into a PNG file.

    This uses no global state of matplotlib and needs no display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    runs = {run: figure_series(log) for run, log in logs.items()}
    several_runs = len(runs) > 1  # then the colour tells the run, and the line style the figure
    names = list(dict.fromkeys(name for series in runs.values() for name in series))
    last_panels = [TITLES["lr"], TITLES["images_per_second"]]
    panels = sorted(dict.fromkeys(map(panel_title, names)), key=lambda panel: (panel != "loss", panel in last_panels))
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // 3))
    picture = Figure(figsize=(4.6 * columns, 3.3 * rows), dpi=90, layout="constrained")
    picture.suptitle(title)
    for position, panel in enumerate(panels, 1):
        axes = picture.add_subplot(rows, columns, position, title=panel, xlabel="step")
        panel_names = [name for name in names if panel_title(name) == panel]
        styles = {name: _line_style(name, index, several_runs) for index, name in enumerate(panel_names)}
        for (run_index, run), name in product(enumerate(runs), panel_names):
            if name in runs[run]:
                of_run = {"color": f"C{run_index}", "label": f"{run}: {_label(name)}"} if several_runs else {}
                axes.plot(*runs[run][name], **styles[name] | of_run)
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
        if panel == TITLES["images_per_second"]:
            axes.set_ylim(bottom=0)
        if len(panel_names) > 1:
            handles = [Line2D([], [], **styles[name]) for name in panel_names]
            axes.legend(handles=handles, fontsize="x-small", handlelength=4)
    if several_runs:
        handles = [Line2D([], [], color=f"C{index}", label=run) for index, run in enumerate(runs)]
        picture.legend(handles=handles, loc="outside lower center", ncols=3)
    buffer = io.BytesIO()
    FigureCanvasAgg(picture).print_png(buffer)
    write_atomically(path, buffer.getvalue(), durable=False)  # it can easily be drawn again


def _label(name: str) -> str:
    return name.replace("validation/", "validation ").replace("_", " ")


def _line_style(name: str, index: int, several_runs: bool) -> dict[str, Any]:
    """Return matplotlib's options for a panel's figure of that index."""
    style = {"color": f"C{index}", "label": _label(name), "marker": "." if name.startswith("validation/") else None}
    if several_runs:
        return style | {"color": "black", "ls": LINE_STYLES[index % len(LINE_STYLES)]}
    return style | {"color": "0.5", "ls": "--"} if name == "chance_loss" else style
