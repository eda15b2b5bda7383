"""`python -m data.inspect`: see data/inspect/inspection.py."""

from collections.abc import Sequence

from unclip.cli.run import run


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the program. It is imported only here, after the signals are taken over, as that may take seconds."""
    from data.inspect.inspection import main

    return main(argv)


if __name__ == "__main__":
    run(main)
