"""Options of the command line: config dataclasses with their help, and the few that decide the others' defaults."""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from itertools import groupby, pairwise
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from unclip.cli.reporting import is_rank_zero
from unclip.errors import UserError
from unclip.fields import as_option, check, field_docs, flat_values
from unclip.settings import SAMPLING_OPTIONS, Sampling, SamplingOptions

C = TypeVar("C")

REGISTRY = tyro.constructors.ConstructorRegistry()
PROGRAM: ContextVar[str | None] = ContextVar("program", default=None)
"""The name that --help shows (default: the file of the program)."""


def command_line(argv: Sequence[str] | None) -> list[str]:
    """The arguments of a program: `argv`, or those of this process. Nothing else here reads `sys.argv`.

    A value that begins with ~ is in the home folder, which shells do not put in for --out=~/x.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return [_with_home(word, before) for before, word in pairwise(["", *words])]


def _with_home(word: str, before: str) -> str:
    """A word of the command line with the home folder for the ~ of an option's value."""
    if word.startswith("--"):
        option, equals, value = word.partition("=")
        return option + equals + os.path.expanduser(value)
    is_value = before.startswith("--") and before != "--" and "=" not in before
    return os.path.expanduser(word) if is_value else word


@dataclass(frozen=True)
class EarlyOptions:
    """Options that other options' defaults depend on, as the command line gives them; None for one that it does not."""

    preset: str | None = None
    """Preset of a training."""
    kind: str | None = None
    """Kind of the part to train."""
    checkpoint: str | None = None
    """Pipeline to use, whose settings are then the defaults."""
    style: str | None = None
    """Style of sampling: --style, or --sampling.style."""
    out: str | None = None
    """Folder to write; a trainer's may hold a pipeline already."""
    data: str | None = None
    """Source of the data."""
    clip: str | None = None
    """Pretrained CLIP to train on."""
    init_from: str | None = None
    """Pipeline to start a training from."""


def read_early_options(argv: Sequence[str] | None = None) -> EarlyOptions:
    """Find the early options in the arguments, before all of them are parsed. The last of several values counts."""
    names = [item.name for item in fields(EarlyOptions)]
    values = find_options(argv, {name: [name] for name in names} | {"style": ["style", "sampling.style"]})
    return EarlyOptions(**values)


def find_given(argv: Sequence[str] | None, names: Iterable[str]) -> list[str]:
    """Return the options that the arguments name, whatever their values."""
    values = find_options(argv, {name: [name] for name in names})
    return [name for name, value in values.items() if value is not None]


def given_settings(argv: Sequence[str] | None, options: SamplingOptions, sampling: Sampling) -> dict[str, Any]:
    """The style, and the settings that the arguments name, whatever their values, over those of a pipeline.

    One that is named counts even if it is the pipeline's own: any of the decoder's asks for the decoder to draw.
    """
    named = {name: getattr(options, name) for name in find_given(argv, SAMPLING_OPTIONS)}
    return named | options.changed(sampling)


def find_options(argv: Sequence[str] | None, spellings: dict[str, list[str]]) -> dict[str, str | None]:
    """The values of a few options, each of which may be spelled with underscores too, as in the parser of all."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, variants in spellings.items():
        flags = {flag for variant in variants for flag in (as_option(variant), f"--{variant}")}
        parser.add_argument(*flags, dest=name, nargs="?", const="")
    return vars(parser.parse_known_args(command_line(argv))[0])


@contextlib.contextmanager
def program_name(name: str) -> Iterator[None]:
    """Within the block, --help shows this name of the program."""
    token = PROGRAM.set(name)
    try:
        yield
    finally:
        PROGRAM.reset(token)


@REGISTRY.struct_rule
def _config(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """How a config dataclass becomes options, by the metadata of its fields; see `unclip.fields`.

    Fields that are not options keep their defaults. The options of a flattened config are named as its parent's.
    """
    config_class: Any = info.type
    parameters = vars(config_class).get("__parameters__", ()) if is_dataclass(info.type) else ()
    if not is_dataclass(info.type) or parameters:  # tyro wraps commands in a generic dataclass
        return None
    types = get_type_hints(config_class, include_extras=True)
    docs = field_docs(config_class)
    options = []
    for item in fields(config_class):
        if not item.metadata.get("option", True):
            continue
        annotation = types[item.name]
        if item.metadata.get("flatten"):
            annotation = Annotated[annotation, tyro.conf.arg(name="")]
        default = _default_of(item, info.default)
        options.append(tyro.constructors.StructFieldSpec(item.name, annotation, default, docs.get(item.name)))

    def instantiate(**values: Any) -> Any:  # a function of ours, as --help would show the docstring of `replace`
        if is_dataclass(info.default) and not isinstance(info.default, type):
            return replace(info.default, **values)
        return config_class(**values)

    return tyro.constructors.StructConstructorSpec(instantiate, tuple(options))


def _default_of(item: Field, config: Any) -> Any:
    """The default of an option: its value in `config`, if that is a config; else the default of the field."""
    if is_dataclass(config):
        return getattr(config, item.name)
    if item.default_factory is not MISSING:
        return item.default_factory()
    return tyro.MISSING if item.default is MISSING else item.default


def parse(kind: type[C], description: str, default: C | None = None, argv: Sequence[str] | None = None) -> C:
    """Read a config dataclass from arguments (default: the command line's); --help documents each field.

    With a `default`, which may be that of a pipeline, a flag can be given as --flag and --no-flag, whichever is the
    default: the command that began a training also goes on with it.

    Raises UserError, in one line that names the nearest right option, for an unknown or an ill-typed one.
    """
    output = io.StringIO()
    options: dict[str, Any] = {"config": (tyro.conf.FlagCreatePairsOff,)} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(output):
            config = tyro.cli(
                kind,
                prog=PROGRAM.get(),
                description=description,
                args=command_line(argv),
                registry=REGISTRY,
                **options,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_summarize_frame(output.getvalue())) from None
    check(config, spell=as_option)
    return config


def _summarize_frame(frame: str) -> str:
    """The message in the frame that tyro prints around an error, and the options that it suggests.

    The text is read as tyro (1.0) offers nothing better: the exceptions behind it are private and may change in any
    release, and `get_parser`, which would list all options, is deprecated. A frame holds a title, the message, and
    after a rule the help of the options that were meant.
    """
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip("│╭╮╰╯ ") for line in frame.splitlines()[1:]]
    sections = [list(group) for is_rule, group in groupby(lines, lambda line: set(line) <= set("─-")) if not is_rule]
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(sections[0])).rstrip(".")  # without the name of a class
    suggestions = [line for section in sections[1:] for line in section if line.startswith("--")]
    if suggestions and message.startswith("Unrecognized"):
        message += f"; did you mean {' or '.join(suggestions[:2])}?"
    elif suggestions:  # the usage of an option with an ill-typed value
        message += f"; expected {suggestions[0]}"
    return f"{message} (all options: --help)"


def parse_run(presets: dict[str, C], description: str, argv: Sequence[str] | None = None) -> C:
    """Read a trainer's config: --preset names the defaults, and a line shows what the other options change.

    Raises UserError for an unknown preset or option.
    """
    name = read_early_options(argv).preset
    name = "quick" if name is None else name
    if name not in presets:
        raise UserError(f"unknown preset {name!r}; choose one of {', '.join(presets)}")
    config = parse(type(presets[name]), description, presets[name], argv)
    defaults = flat_values(presets[name])
    changed = [f"{option} = {value}" for option, value in flat_values(config).items() if value != defaults[option]]
    if is_rank_zero():
        print(f"preset {name}{', with ' if changed else ''}{', '.join(changed)}")
    return config
