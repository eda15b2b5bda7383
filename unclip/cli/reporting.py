"""Choose the process that reports an error, where torchrun runs a program as many ranks. Imports nothing heavy."""

import os

RANK_ENDED = "another rank has ended{}, so this one cannot go on; the same command goes on from the last saved state"


def is_rank_zero() -> bool:
    """Whether this process is the first rank, or the only one, by what torchrun tells it."""
    return os.environ.get("RANK", "0") == "0"


class ErrorReporter:
    """Decides whether this process reports an error. By default rank 0 does, and nobody watches the other ranks."""

    def may_report(self) -> bool:
        """Whether this process is the one that reports what has gone wrong. It is asked once per error."""
        return is_rank_zero()

    def report_lost_rank(self) -> bool:
        """Report a rank that has ended without a word. Returns whether there is one."""
        return False


_reporter = ErrorReporter()


def set_error_reporter(reporter: ErrorReporter) -> None:
    """Let another object decide from now on; a program whose ranks know of each other registers one."""
    global _reporter
    _reporter = reporter


def error_reporter() -> ErrorReporter:
    return _reporter
