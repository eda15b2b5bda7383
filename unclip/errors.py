"""The one exception that means: what was given cannot be used, and the message says why."""


class UserError(ValueError):
    """Bad input. The message is one line: what was given, what was expected, what to do next.

    The command-line programs print it without a traceback; Python callers can catch it as a `ValueError`.
    """


def reason(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def shown(value: object) -> str:
    """A value as a message names it: on one line, and cut short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
