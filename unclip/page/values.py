"""Read a visitor's values, which may be anything: a program can send what the page's fields would not."""

import math
from typing import Any

from unclip.errors import UserError, shown

LONGEST = 1000
"""Letters of a caption, far more than CLIP reads."""


def read_text(value: Any, label: str, longest: int = LONGEST) -> str:
    """A text of at most `longest` letters; nothing counts as "". Raises UserError."""
    if not isinstance(value, str | None):
        raise UserError(f"{label} takes a text, not {shown(value)}")
    text = value or ""
    if len(text) > longest:
        raise UserError(f"{label} takes at most {longest:,} letters, not {len(text):,}")
    return text


def read_number(value: Any, label: str, low: float, high: float, is_whole: bool = False) -> float:
    """A number, moved into low .. high: a box may be empty or out of range while somebody types. Raises UserError."""
    if value is None or value == "":
        return low
    if not isinstance(value, int | float) or value != value:
        raise UserError(f"{label} takes a number from {low:g} to {high:g}, not {shown(value)}")
    number = min(max(value, low), high)
    return round(number) if is_whole else number


def read_seed(value: Any) -> int:
    """A whole number; an empty box counts as 0. Raises UserError."""
    if value is None or value == "":
        return 0
    if not isinstance(value, int | float) or not abs(value) < 2**63 or value != math.floor(value):
        raise UserError(f"Seed takes a whole number from 0 to {2**63 - 1}, not {shown(value)}")
    return int(value)
