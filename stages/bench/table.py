"""The table of all measurements: for people as Markdown, for programs as JSON."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from stages.bench.comparisons import PLAIN
from stages.bench.contender import Contender
from unclip.errors import UserError

HEADS = ("work", "code", "parameters", "images/s", "ours / it", "GFLOP per image", "share of matrix rate", "memory")
TOLERANCE = 0.05
"""The largest relative difference between the numbers of parameters that are compared."""


@dataclass
class Row:
    title: str
    ours: Contender
    others: dict[str, Contender | None] = field(default_factory=dict)
    """By name; None for a project that is not installed."""

    def check_fairness(self) -> None:
        """Raise UserError if another model differs from ours in size, or if a training did not train."""
        for name, other in self.others.items():
            if other is None or name == PLAIN:  # plain code carries CLIP and the prior along
                continue
            if abs(other.parameters / self.ours.parameters - 1) > TOLERANCE:
                raise UserError(
                    f"{self.title}: {name} has {other.parameters} parameters and ours {self.ours.parameters}, which "
                    f"differ by more than {TOLERANCE:.0%}; their times cannot be compared. Give both equal sizes in "
                    "stages/bench"
                )
        for contender in (self.ours, *self.others.values()):
            if contender is not None:
                contender.check_losses()

    def figures(self) -> list[dict[str, Any]]:
        """Return a dictionary for each contender, ours first. Quartiles are (lower, median, upper)."""
        lines = [{"work": self.title, "code": "ours", **contender_figures(self.ours)}]
        for name, other in self.others.items():
            line = {"work": self.title, "code": name}
            if other is not None:
                line |= contender_figures(other) | {"ratio": speed_ratio(self.ours, other)}
            lines.append(line)
        return lines


def contender_figures(contender: Contender) -> dict[str, Any]:
    return {
        "parameters": contender.parameters,
        "images_per_second": quartiles([contender.images / seconds for seconds in contender.seconds]),
        "operations_per_image": contender.operations,
        "share_of_matrix_rate": quartiles(contender.matrix_shares),
        "peak_bytes": contender.peak_bytes,
        "extrapolated": contender.fraction < 1,
        "losses": [contender.losses[0], contender.losses[-1]] if contender.losses else None,
        "seconds": contender.seconds,
    }


def speed_ratio(ours: Contender, other: Contender) -> list[float]:
    """Return how many times faster ours is. Ratios are taken round by round: what slows the machine slows both."""
    return quartiles([slow / fast for slow, fast in zip(other.seconds, ours.seconds, strict=True)])


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values


def markdown(lines: list[dict[str, Any]]) -> str:
    """Format what `Row.figures` returns: medians, with the quartiles in brackets."""
    rows = [HEADS, ("---",) * len(HEADS)]
    last_title = ""
    for line in lines:
        title = line["work"] if line["work"] != last_title else ""
        last_title = line["work"]
        if "parameters" not in line:
            rows.append((title, line["code"], "not installed", *[""] * (len(HEADS) - 3)))
            continue
        low, median, high = line["share_of_matrix_rate"]
        rows.append(
            (
                title,
                line["code"] + (" (extrapolated)" if line["extrapolated"] else ""),
                f"{line['parameters'] / 1e6:.2f}M",
                median_and_quartiles(line["images_per_second"]),
                f"**{median_and_quartiles(line['ratio'])}**" if "ratio" in line else "",
                f"{line['operations_per_image'] / 1e9:,.2f}",
                f"{median:.0%} ({low:.0%}-{high:.0%})",
                f"{line['peak_bytes'] / 1e6:,.0f} MB" if line["peak_bytes"] else "",
            )
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def median_and_quartiles(values: list[float]) -> str:
    low, median, high = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in values)
    return f"{median} ({low}-{high})"
