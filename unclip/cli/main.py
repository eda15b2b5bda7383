"""The command `unclip`: what can be done with a trained pipeline, without the repository.

    unclip sample "an image of a sneaker" --n 8    # draw images from captions
    unclip edit vary shoe.png                      # vary, blend, change, mix, inpaint and probe images
    unclip page                                    # do the same in a browser
    unclip info checkpoints/run                    # describe a pipeline: parts, sizes, data, settings
    unclip settings checkpoints/run --steps 20     # show or change a pipeline's settings of sampling
    unclip doctor checkpoints/run                  # say what is wrong with it (in a checkout)
    unclip publish checkpoints/run DIR             # make a pipeline ready to hand out, or upload it
    unclip export checkpoints/run                  # write its CLIP for another library

Each has options of its own: unclip COMMAND --help. The version: unclip --version.
"""

import difflib
import importlib
from collections.abc import Sequence

from unclip import __version__
from unclip.cli.run import run
from unclip.errors import UserError

COMMANDS = {
    "sample": "unclip.cli.sample",
    "edit": "unclip.edit.commands",
    "page": "unclip.page.__main__",
    "info": "unclip.cli.info",
    "settings": "unclip.cli.settings",
    "doctor": "unclip.cli.doctor",
    "publish": "unclip.cli.publish",
    "export": "unclip.cli.export",
}
"""Command -> the module of its `main`, which is imported when the command is given."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command in this process, and end it: the entry point of the installed package."""
    run(run_command, argv)


def run_command(argv: Sequence[str] | None = None) -> int | None:
    """Call the program that the first argument names with the other arguments. Returns its exit status.

    Raises UserError for an unknown command.
    """
    from unclip.cli.options import command_line, program_name

    name, *arguments = command_line(argv) or ["--help"]
    if name in ("-h", "--help"):
        print((__doc__ or f"commands: {', '.join(COMMANDS)}").strip())  # python -OO drops docstrings
        return 0
    if name == "--version":
        print(f"unclip {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name!r}; {hint} (all commands: unclip --help)")
    with program_name(f"unclip {name}"):
        return importlib.import_module(COMMANDS[name]).main(arguments)
