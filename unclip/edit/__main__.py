"""`python -m unclip.edit`, or `unclip edit`: see unclip/edit/commands.py."""

from collections.abc import Sequence

from unclip.cli.run import run


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the program. It is imported only here, after the signals are taken over, as that may take seconds."""
    from unclip.edit.commands import main

    main(argv)
    return None


if __name__ == "__main__":
    run(main)
