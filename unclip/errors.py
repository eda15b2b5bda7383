"""UserError, the exception for input that cannot be used, and helpers for messages."""


class UserError(ValueError):
    """Bad input. The message is one line: what was given, what was expected, what to do next.

    The command-line programs print it without a traceback; Python callers can catch it as a `ValueError`.
    """


def reason(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def shown(value: object) -> str:
    """A value as it appears in a message: its repr on one line, shortened to 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
