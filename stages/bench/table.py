"""The table, for people and for programs."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from stages.bench.contender import Contender
from stages.bench.works import PLAIN
from unclip.errors import UserError

HEAD = ("work", "code", "parameters", "images/s", "ours / it", "GFLOP per image", "share of matrix rate", "memory")
TOLERANCE = 0.05
"""By how much the numbers of parameters of equal work may differ."""


@dataclass
class Row:
    title: str
    ours: Contender
    others: dict[str, Contender | None] = field(default_factory=dict)
    """By name; None for what is not installed."""

    def check(self) -> None:
        """Raise UserError if another project's model has not our number of parameters, or a training does not train."""
        for name, other in self.others.items():
            if other is None or name == PLAIN:  # which carries CLIP and the prior along
                continue
            if abs(other.parameters / self.ours.parameters - 1) > TOLERANCE:
                raise UserError(
                    f"{self.title}: {name} has {other.parameters} parameters and ours {self.ours.parameters}, which "
                    f"differ by more than {TOLERANCE:.0%}; their times cannot be compared"
                )
        for one in (self.ours, *self.others.values()):
            if one is not None:
                one.check()

    def figures(self) -> list[dict[str, Any]]:
        """Ours first; quartiles as (lower, median, upper)."""
        lines = [{"work": self.title, "code": "ours", **figures(self.ours)}]
        for name, other in self.others.items():
            line = {"work": self.title, "code": name}
            lines.append(line if other is None else line | figures(other) | {"ratio": ratio(self.ours, other)})
        return lines


def figures(one: Contender) -> dict[str, Any]:
    return {
        "parameters": one.parameters,
        "images_per_second": quartiles([one.images / seconds for seconds in one.seconds]),
        "operations_per_image": one.operations,
        "share_of_matrix_rate": quartiles(one.shares),
        "peak_bytes": one.memory,
        "extrapolated": one.part < 1,
        "losses": [one.losses[0], one.losses[-1]] if one.losses else None,
        "seconds": one.seconds,
    }


def ratio(ours: Contender, other: Contender) -> list[float]:
    """How many times faster ours is, round by round: what slows the machine slows both."""
    pairs = zip(other.seconds, ours.seconds, strict=True)
    return quartiles([theirs / own for theirs, own in pairs])


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values


def markdown(lines: list[dict[str, Any]]) -> str:
    """Medians, with the quartiles in brackets."""
    rows, before = [HEAD, ("---",) * len(HEAD)], ""
    for line in lines:
        title, before = line["work"] if line["work"] != before else "", line["work"]
        if "parameters" not in line:
            rows.append((title, line["code"], "not installed", *[""] * (len(HEAD) - 3)))
            continue
        memory = f"{line['peak_bytes'] / 1e6:,.0f} MB" if line["peak_bytes"] else ""
        low, median, high = line["share_of_matrix_rate"]
        rows.append(
            (
                title,
                line["code"] + (" (extrapolated)" if line["extrapolated"] else ""),
                f"{line['parameters'] / 1e6:.2f}M",
                spread(line["images_per_second"]),
                f"**{spread(line['ratio'])}**" if "ratio" in line else "",
                f"{line['operations_per_image'] / 1e9:,.2f}",
                f"{median:.0%} ({low:.0%}-{high:.0%})",
                memory,
            )
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def spread(values: list[float]) -> str:
    low, median, high = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in values)
    return f"{median} ({low}-{high})"
