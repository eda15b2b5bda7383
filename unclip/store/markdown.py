"""Texts of others in Markdown: captions, names and figures appear as they are, without any markup of their own."""

import html
import re
from collections.abc import Collection, Sequence

MARKUP = re.compile(r"([\\`*\[\]|!~])|(?<!\w)_|_(?!\w)")
"""Characters that mark up text, but for those that `html.escape` replaces and a _ within a word."""


def one_line(text: object) -> str:
    """Text on one line."""
    return " ".join(str(text).split())


def plain(text: object) -> str:
    """Text that shows as it is, on one line."""
    return MARKUP.sub(r"\\\g<0>", html.escape(one_line(text), quote=False))


def code(text: object) -> str:
    """Text as code, on one line."""
    return f"`{one_line(text).replace('`', '')}`"


def table(heads: Sequence[str], rows: Collection[Sequence[object]], code_heads: Collection[str] = ("SHA-256",)) -> str:
    """A table of texts of others; those of the columns in `code_heads` show as code."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [code(c) if head in code_heads and c else plain(c) for head, c in zip(heads, row, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)
