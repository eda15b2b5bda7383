"""The comparison of priors as tables in Markdown."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from stages.priors.rows import ALL_ROWS, VARIANTS

STUDENT = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5% quantile of Student's distribution for 0, 1, 2, ... degrees of freedom."""
EMBEDDING_COLUMNS = {
    "Fréchet distance": "frechet",
    "precision": "precision",
    "recall": "recall",
    "energy distance": "energy",
    "variance of components 1-8": "variance_1_to_8",
    "9-16": "variance_9_to_16",
    "17-32": "variance_17_to_32",
    "in the central 80%": "central",
    "nats of draws": "log_likelihood",
    "nats of real": "real_log_likelihood",
    "s per 1,000": "seconds",
}
IMAGE_COLUMNS = {
    "right": "right",
    "Fréchet distance": "image_frechet",
    "recall": "image_recall",
    "attributes": "attributes",
    "held-out pairs": "held_out",
    "parameters": "parameters",
    "steps": "steps",
}
Figures = Mapping[str, Any]


def tables(figures: Mapping[str, Figures]) -> str:
    """Tables of what has been measured.

    Args:
        figures: by the names of files: ROW-SEED, "real-0", or "variant NAME".
    """
    by_row: dict[str, list[Figures]] = defaultdict(list)
    for name, values in figures.items():
        row = re.sub(r"-\d+$", "", name)
        by_row[row].append(values)
    labels = {"real": "real training images"} | {name: row.label for name, row in ALL_ROWS.items()}
    variants = {f"variant {name}": name for name in VARIANTS}
    sections = {
        "Draws in CLIP's space, beside real test embeddings:": table(by_row, labels, EMBEDDING_COLUMNS),
        "Images by one decoder:": table(by_row, labels, IMAGE_COLUMNS),
        "Other ways to draw from the autoregressive prior:": table(by_row, variants, EMBEDDING_COLUMNS),
    }
    return "\n\n".join(f"{heading}\n\n{rows}" for heading, rows in sections.items() if rows) + "\n"


def table(by_row: Mapping[str, Sequence[Figures]], labels: Mapping[str, str], columns: Mapping[str, str]) -> str:
    """Rows in the order of their labels; those without any of the columns are left out. Returns "" if all are."""
    lines = []
    for name, label in labels.items():
        cells = [cell([run.get(key) for run in by_row.get(name, ())]) for key in columns.values()]
        if set(cells) != {"-"}:
            lines.append(f"| {label} | {' | '.join(cells)} |")
    heading = [f"| prior | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(heading + lines) if lines else ""


def cell(values: Sequence[float | None]) -> str:
    """The mean over seeds, with the half width of its 95% interval where there are several."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    if len(known) == 1:
        return number(mean)
    variance = sum((value - mean) ** 2 for value in known) / (len(known) - 1)
    half = STUDENT[min(len(known), len(STUDENT)) - 1] * math.sqrt(variance / len(known))
    return number(mean) if half == 0 else f"{number(mean)} ± {number(half)}"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
