"""Captions from the values that tables, arrays and text files hold."""

import ast
import contextlib
import json

import numpy as np

from data.problems import Problems
from unclip.text import is_text


def as_captions(value: object, problems: Problems) -> tuple[str, ...]:
    """The distinct captions in a value: one text or number, or several.

    Empty text, text with control characters and text that is not Unicode are left out. Text that is written as a list,
    as CSV files hold several captions, is read as that list; a note says so.
    """
    values = value.tolist() if isinstance(value, np.ndarray) else value
    values = values if isinstance(values, (list, tuple)) else [values]
    texts = []
    for item in values:
        if isinstance(item, bool) or not isinstance(item, (str, int, float)) or item != item:  # the last is NaN
            continue
        text = str(item).strip()
        listed = _parse_list(text)
        if listed is None:
            texts.append(text)
        else:
            problems.note("lists", f"text such as {text[:60]} is read as a list of captions")
            texts += listed
    return tuple(dict.fromkeys(text for text in texts if _is_caption(text)))


def _is_caption(text: str) -> bool:
    """Whether text is Unicode without control characters and has a visible character; some blanks have no width."""
    return is_text(text) and any(character.isprintable() for character in text if character != " ")


def _parse_list(text: str) -> list[str] | None:
    """The strings of a list that is written as JSON or as Python prints it; None for any other text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            values = parse(text)
            if isinstance(values, list) and all(isinstance(value, str) for value in values):
                return [value.strip() for value in values]
    return None
