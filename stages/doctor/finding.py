"""A rule of the doctor, and what it finds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["mismatched", "diverged", "leaking", "collapsed", "undertrained"]
VERDICTS: tuple[Verdict, ...] = ("mismatched", "diverged", "leaking", "collapsed", "undertrained")
"""From the cause to its effects: what a part is called of which several rules complain is the first of these."""


@dataclass(frozen=True)
class Finding:
    """The complaint of a rule about a part."""

    verdict: Verdict
    figure: str
    """The figure, and the bound that it should keep."""
    advice: str
    """The way to mend it."""


@dataclass(frozen=True)
class Rule:
    name: str
    parts: tuple[str, ...]
    """The parts that it judges."""
    needs: tuple[str, ...]
    """The evidence that it looks at, of `stages.doctor.evidence.NEEDS`, beside the manifest, which is always there."""
    judge: Callable[[Any, str], Finding | None]
    """judge(evidence, part) -> a finding, or None where there is nothing to complain of or no telling."""
