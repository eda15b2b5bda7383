"""Show the settings of sampling that a pipeline has, or change them: neither its data nor a training is needed.

    unclip settings checkpoints/run                          # show them
    unclip settings checkpoints/run --steps 20 --guidance 2  # change these two; the others stay
    unclip settings checkpoints/run steps=20 guidance=2      # the same

The defaults that --help shows are the library's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unclip.cli.info import format_value
from unclip.cli.options import command_line, find_given, parse
from unclip.errors import UserError
from unclip.settings import SAMPLING_OPTIONS, SamplingOptions, check_parts
from unclip.store.hub import find_pipeline, is_hub_name
from unclip.store.index import read_index, read_sampling
from unclip.store.stored_sampling import write_sampling


@dataclass(frozen=True)
class SettingsOptions(SamplingOptions):
    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a pipeline; or, to show its settings, its name OWNER/NAME on the Hugging Face Hub."""


def main(argv: Sequence[str] | None = None) -> None:
    argv = [f"--{word}" if is_assignment(word) else word for word in command_line(argv)]
    options = parse(SettingsOptions, __doc__, argv=argv)
    given = {name: getattr(options, name) for name in find_given(argv, ["style", *SAMPLING_OPTIONS])}
    if options.checkpoint is None:
        raise UserError("name the folder of a pipeline, like: unclip settings checkpoints/run")
    if "batch_size" in given:
        raise UserError("--batch-size changes the memory and not the images, so no pipeline stores it; leave it out")
    folder = find_pipeline(options.checkpoint)
    index = read_index(folder)
    if not index:
        raise UserError(f"{folder} holds no trained pipeline; name the folder of one")
    check_parts(given, index["parts"], "this pipeline lacks")
    stored = read_sampling(folder)
    sampling = stored.override(**given)
    if given:
        if is_hub_name(options.checkpoint):
            raise UserError(f"{options.checkpoint} is on the Hugging Face Hub; change the settings of a folder")
        write_sampling(folder, sampling)
    before = SamplingOptions.of(stored)
    after = SamplingOptions.of(sampling)
    for name in SAMPLING_OPTIONS:
        old, new = (format_value(getattr(settings, name)) for settings in (before, after))
        if name != "batch_size":
            print(f"{name} {new}" if old == new else f"{name} {new} (was {old})")


def is_assignment(word: str) -> bool:
    """Whether a word of the command line is one such as steps=20."""
    name, equals, _ = word.partition("=")
    return name in SAMPLING_OPTIONS and equals == "="
