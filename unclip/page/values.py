"""Read a visitor's values, which may be anything: a program can send what the page's fields would not."""

import math
from contextlib import suppress
from typing import Any

from unclip.errors import UserError, shown
from unclip.settings import MAX_SEED

LONGEST = 1000
"""Letters of a caption, far more than CLIP reads."""
MOST_PICTURES = 16
"""Pictures of one caption or image per click."""


def read_text(value: Any, label: str, longest: int = LONGEST) -> str:
    """A text of at most `longest` letters; nothing counts as "". Raises UserError."""
    if not isinstance(value, str | None):
        raise UserError(f"{label} takes a text, not {shown(value)}")
    text = value or ""
    if len(text) > longest:
        raise UserError(f"{label} takes at most {longest:,} letters, not {len(text):,}")
    return text


def read_number(value: Any, label: str, low: float, high: float, is_whole: bool = False) -> float:
    """A number in low .. high. Raises UserError for any other, rather than draw with another than was asked for."""
    kind = "whole number" if is_whole else "number"
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if not is_number or not low <= value <= high or (is_whole and value != math.floor(value)):
        given = "nothing" if value is None or value == "" else shown(value)
        raise UserError(f"{label} takes a {kind} from {low:,} to {high:,}, not {given}")
    return int(value) if is_whole else value


def read_optional_number(value: Any, label: str, low: float, high: float, is_whole: bool = False) -> float | None:
    """The same, or None for an empty field. A text field may hold the number."""
    if value is None or value == "":
        return None
    return read_number(parse_number(value) if isinstance(value, str) else value, label, low, high, is_whole)


def parse_number(text: str) -> Any:
    """The number that a text holds; any other text as it is."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def read_seed(value: Any, label: str = "Seed") -> int:
    """A whole number to count seeds from. Raises UserError."""
    return int(read_number(value, label, 0, MAX_SEED - MOST_PICTURES, is_whole=True))


def read_choice(value: Any, label: str, choices: tuple[str, ...]) -> str:
    """One of some texts. Raises UserError for any other."""
    if value not in choices:
        raise UserError(f"{label} takes one of {', '.join(choices)}, not {shown(value)}")
    return value


def read_switch(value: Any, label: str) -> bool:
    """On or off. Raises UserError for any other."""
    if not isinstance(value, bool):
        raise UserError(f"{label} is on or off, not {shown(value)}")
    return value


def read_file(value: Any, label: str) -> Any:
    """The file of a picture, or None. It is opened where it is used."""
    return value


def split_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def parse_captions(text: str) -> list[str]:
    """The captions in a text, one per line. Raises UserError if there are none."""
    captions = [read_text(line, "a caption") for line in split_lines(text)]
    if not captions:
        raise UserError("no caption; write one per line")
    return captions
