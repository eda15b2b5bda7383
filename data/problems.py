"""Rows of a source that cannot be used. They are counted and named, or refused; none is lost in silence."""

import hashlib
import os
from dataclasses import dataclass, field

from data import paths
from unclip.errors import UserError, printable, quantity
from unclip.store.files import write_atomically

SHOWN = 5
"""Number of problems that are printed; with more, all of them are written to a file."""


@dataclass
class Problems:
    """The rows of one source that cannot be used, with reasons, and notes on unusual readings of the others."""

    source: str
    rows: dict[tuple[str, str], int] = field(default_factory=dict)
    """How many rows each pair of name and reason stands for. A pair that is added twice counts once."""
    notes: dict[str, str] = field(default_factory=dict)
    """For each kind of unusual reading, its first case."""

    def add(self, name: str, reason: str, rows: int = 1) -> None:
        """Record that the row `name` cannot be used."""
        self.rows[printable(name), printable(reason)] = rows

    def note(self, kind: str, text: str) -> None:
        """Record that values are used, but not read literally. Only the first note of a kind is kept."""
        self.notes.setdefault(kind, printable(text))

    def report(self, strict: bool) -> None:
        """Print the notes, the number of unusable rows, and the first few of them; write a longer list to a file.

        Raises UserError instead if `strict` is set and a row cannot be used.
        """
        for text in self.notes.values():
            print(f"{printable(self.source)}: {text}")
        if not self.rows:
            return
        lines = [f"{name}: {reason}" for name, reason in self.rows]
        count = sum(self.rows.values())
        summary = f"{quantity(count, 'row')} of {printable(self.source)} cannot be used"
        if strict:
            raise UserError(f"{summary}, the first is {lines[0]}; correct the source, or leave out --data.strict")
        print(f"{summary} and {'is' if count == 1 else 'are'} left out:")
        for line in lines[:SHOWN]:
            print(f"  {line}")
        if len(lines) > SHOWN:
            path = paths.CACHE / "problems" / f"{hashlib.sha256(os.fsencode(self.source)).hexdigest()[:16]}.txt"
            write_atomically(path, "\n".join(lines) + "\n")
            print(f"  ... the whole list is in {path}")
