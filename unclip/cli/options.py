"""What the command-line programs share: typed options, and one clear line for bad input. Imports no torch."""

import contextlib
import errno
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from unclip.cli import signals
from unclip.errors import UserError, reason
from unclip.fields import as_option, check, field_docs, flat_values

C = TypeVar("C")

HINTS = {
    errno.ENOSPC: "; free some space, and give the same command again",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST), "; choose another folder"),
}

OTHER_RANK = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "NCCL", "Broken pipe",
              "Socket", "gloo", "DistStore", "recvValue")  # fmt: skip
"""Words by which the backends say that another rank does not answer."""
RANK_ENDED = "another rank has ended{}, so this one cannot go on; the same command goes on from the last saved state"

REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.struct_rule
def _config(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """How a config dataclass becomes options, by the metadata of its fields; see `unclip.fields`.

    Fields that are not options keep their defaults. The options of a flattened config are named as its parent's.
    """
    if not is_dataclass(info.type) or getattr(info.type, "__parameters__", ()):  # tyro wraps commands in a generic one
        return None
    types = get_type_hints(info.type, include_extras=True)
    docs = field_docs(info.type)
    options = []
    for item in fields(info.type):
        if not item.metadata.get("option", True):
            continue
        annotation = types[item.name]
        if item.metadata.get("flatten"):
            annotation = Annotated[annotation, tyro.conf.arg(name="")]
        default = _default_of(item, info.default)
        options.append(tyro.constructors.StructFieldSpec(item.name, annotation, default, docs.get(item.name)))

    def instantiate(**values: Any) -> Any:  # a function of ours, as --help would show the docstring of `replace`
        return replace(info.default, **values) if is_dataclass(info.default) else info.type(**values)

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

    Raises UserError, in one line that names the nearest right option, for an unknown or an ill-typed one.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            options = {} if default is None else {"default": default}
            config = (tyro.conf.FlagCreatePairsOff,)
            given = tyro.cli(kind, args=argv, description=description, config=config, registry=REGISTRY, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(messages.getvalue())) from None
    check(given, spell=as_option)
    return given


def _one_line(box: str) -> str:
    """The message in tyro's box (a title, the message, a rule, suggestions), and the options that it suggests."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip("│╭╮╰╯ ") for line in box.splitlines()]
    sections: list[list[str]] = [[]]
    for line in filter(None, lines[1:]):
        if set(line) <= {"─", "-"}:
            sections.append([])
        else:
            sections[-1].append(line)
    message, *rest = [section for section in sections if section]
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(message))  # a config class's own words suffice
    suggestions = [line for section in rest for line in section if line.startswith("--")]
    hint = ""
    if suggestions:  # an unknown option's neighbours; of an ill-typed one its own usage
        unknown = message.startswith("Unrecognized")
        hint = f"; did you mean {' or '.join(suggestions[:2])}?" if unknown else f"; expected {suggestions[0]}"
    return f"{message.rstrip('.')}{hint} (all options: --help)"


def parse_run(presets: dict[str, C], description: str) -> C:
    """Read a trainer's config: --preset names the defaults that the other options change.

    Raises UserError for an unknown preset or option.
    """
    name = argument("preset", "quick")
    if name not in presets:
        raise UserError(f"unknown preset {name!r}; choose one of {', '.join(presets)}")
    config = parse(type(presets[name]), description, presets[name])
    defaults = flat_values(presets[name])
    changed = [f"{key} = {value}" for key, value in flat_values(config).items() if value != defaults[key]]
    if os.environ.get("RANK", "0") == "0":
        print(f"preset {name}{', with ' if changed else ''}{', '.join(changed)}")
    return config


def argument(name: str, default: str | None = None) -> str | None:
    """The value that the command line gives --name, before it is parsed: other options' defaults depend on it.

    As in the parser, a name may be spelled with underscores too.
    """
    for given, after in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        option, equals, value = given.partition("=")
        if option.replace("_", "-") == as_option(name):
            default = value if equals else after
    return default


def is_first() -> bool:
    """Whether this process is the one to name an error; of several ranks, one. The trainers replace it."""
    return os.environ.get("RANK", "0") == "0"


def run(main: Callable[[], None]) -> None:
    """Call main; what a user can mend becomes one line on standard error and exit status 1, without a traceback."""
    told = sys.stderr if os.environ.get("RANK", "0") == "0" else None
    warnings.showwarning = lambda message, *_: told and print(f"warning: {message}", file=told)
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        if (line := _line(error)) is None and "RANK" not in os.environ:
            raise
        _end(line, error)


def _line(error: Exception) -> str | None:
    """What to tell of an error that a user can mend, or that another rank has caused; None for a fault of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}{HINTS.get(error.errno, '')}"
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out of memory; choose a smaller batch size, or a smaller model"
    if "RANK" in os.environ and any(word in text for word in OTHER_RANK):
        return RANK_ENDED.format("")
    return None


def _end(line: str | None, error: Exception) -> None:
    """Leave with status 1 and one line; of several ranks only the first says what is wrong, and none waits."""
    if "RANK" not in os.environ:
        sys.exit(f"error: {line}")
    signals.STOP.postponed = True  # a launcher that ends the other ranks too is not to cut this short
    lost = line == RANK_ENDED.format("") and signals.tell_lost()
    if not lost and is_first():
        if line is None:
            traceback.print_exception(error)
            line = f"rank {os.environ['RANK']} has ended: {type(error).__name__}: {reason(error)}"
        print(f"error: {line}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
