"""UserError, the exception for input that cannot be used, and helpers for messages."""

import re

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that break a line, command a terminal, turn the direction of writing, or are bytes that are no text."""


class UserError(ValueError):
    """Bad input. The message is one printable line: what was given, what was expected, what to do next.

    The command-line programs print it without a traceback; Python callers can catch it as a `ValueError`.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Text for one line of a message: characters that are `UNPRINTABLE` are escaped.

    Names of files, rows and columns come from strangers, and may hold commands for the terminal.
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode-escape").decode(), text)


def reason(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def quantity(count: int, noun: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shown(value: object) -> str:
    """A value as it appears in a message: its repr on one line, shortened to 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
