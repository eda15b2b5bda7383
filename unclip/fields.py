"""Config dataclasses: fields with bounds and choices, the check of their values, and their conversion from JSON."""

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unclip.errors import UserError, shown

Number = int | float


def bounded(
    default: Any, low: Number | None = None, high: Number | None = None, affects_weights: bool = True, **notes: Any
) -> Any:
    """A field whose numbers, or all numbers of a tuple, lie in low .. high, both included.

    Args:
        affects_weights: False for a field of a trainer's config that the trained weights do not depend on. Two runs
            that differ only in such fields are the same run.
        notes: other metadata, such as `display_name`, the name in messages.
    """
    return field(default=default, metadata={"low": low, "high": high, "affects_weights": affects_weights, **notes})


def choice(default: Any, table: Mapping[str, Any], **notes: Any) -> Any:
    """A field that names a row of a table. Rows that are added to the table later are accepted too."""
    return field(default=default, metadata={"table": table, **notes})


def from_data(default: Any, low: Number | None = None, high: Number | None = None) -> Any:
    """A field of a model's config that the trainer takes from the data or from the frozen CLIP: no option."""
    return bounded(default, low, high, option=False)


def flattened(default: Any, **notes: Any) -> Any:
    """A field that holds a nested config, whose options are named as if its fields stood beside this one.

    With `network: NetworkConfig = flattened(NetworkConfig())` in the config of `model`, the option of the network's
    width is --model.width and not --model.network.width. Files keep the nesting.
    """
    return field(default=default, metadata={"flatten": True, **notes})


def json_table(**keys: Any) -> Any:
    """A field that is a table of JSON; `keys` are the types of those of its entries that are read here."""
    return field(default_factory=dict, metadata={"keys": keys})


def field_docs(cls: type) -> dict[str, str]:
    """The help text of each field of a dataclass: the string beneath it in the source, or "help" in its metadata."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        docs |= _strings_beneath_fields(base)
    return docs | {item.name: item.metadata["help"] for item in fields(cls) if "help" in item.metadata}


@functools.cache
def _strings_beneath_fields(cls: type) -> dict[str, str]:
    """Field name -> docstring, read from the source of the class; empty for a class that has no source file."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return {}
    definition = ast.parse(textwrap.dedent(source)).body[0]
    docs = {}
    for statement, after in pairwise(getattr(definition, "body", [])):
        match statement, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs


def flat_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a config and its nested ones by their dotted names, as options spell them: {"train.lr": 1e-3}."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        flat |= flat_values(value, nested_prefix(item, prefix)) if is_dataclass(value) else {prefix + item.name: value}
    return flat


def nested_prefix(item: Field, prefix: str = "") -> str:
    """The prefix of the names of a nested config's fields."""
    return prefix if item.metadata.get("flatten") else f"{prefix}{item.name}."


def from_dict(cls, values: dict[str, Any], where: str):
    """Build a config dataclass, nested ones included, from JSON.

    Raises UserError for a field that it lacks, or for a value that is not of its type or out of its bounds.
    """
    known = get_type_hints(cls)
    if not isinstance(values, dict):
        raise UserError(f"{where} has {shown(values)} in place of a {cls.__name__}; it was written by another version")
    if unknown := set(values) - set(known):
        raise UserError(f"{where} has the unknown field {sorted(unknown)[0]!r}; it was written by another version")
    needed = (item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING)
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{where} lacks the field {missing[0]!r}; it was written by another version")
    converted = {}
    for name, value in values.items():
        kind = known[name]
        if is_dataclass(kind):
            value = from_dict(kind, value, where)
        elif isinstance(value, list):
            value = tuple(value)
        converted[name] = value
    built = cls(**converted)
    check(built, f"{where}: ")
    return built


def check(config: Any, prefix: str = "", spell=lambda name: name) -> None:
    """Raise UserError for the first field, nested ones included, that is not of its type or out of its bounds.

    Rules that concern several fields come from the config: its `conflicts()` yields the name of a field and what it
    must do.

    Args:
        prefix: stands before the names, as in "train.".
        spell: turns a name into how the message spells it, such as an option of the command line.
    """
    hints = get_type_hints(type(config))
    for item in fields(config):
        value = getattr(config, item.name)
        name = spell(item.metadata.get("display_name", prefix + item.name))
        if is_dataclass(value):
            check(value, nested_prefix(item, prefix), spell)
        else:
            _check_value(value, hints[item.name], item.metadata, name)
    for name, rule in config.conflicts() if hasattr(config, "conflicts") else ():
        raise UserError(f"{spell(prefix + name)} must {rule}, not {shown(getattr(config, name))}")


def as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_value(value: Any, hint: Any, metadata: Mapping[str, Any], name: str) -> None:
    """Check a value against a type such as int, Literal, tuple[float, float], dict[str, Any] or Path | None.

    Also check the bounds in its metadata. "keys" there maps keys of a dict to the types of their values.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if hint is Any or (value is None and type(None) in kinds):
        return
    kind = next(kind for kind in kinds if kind is not type(None))
    if get_origin(kind) is Literal:
        choices = tuple(metadata.get("table", get_args(kind)))
        if value not in choices:
            raise UserError(f"{name} must be one of {', '.join(map(str, choices))}, not {shown(value)}")
    elif get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, tuple) or (parts[-1] is not Ellipsis and len(value) != len(parts)) or len(value) > 64:
            count = "some" if parts[-1] is Ellipsis else len(parts)
            raise UserError(f"{name} must be {count} values, not {shown(value)}")
        for element in value:
            _check_value(element, parts[0], metadata, name)
    elif get_origin(kind) is list:
        _check_type_and_bounds(value, list, {}, name)
        for element in value:
            _check_value(element, get_args(kind)[0], metadata, name)
    elif get_origin(kind) is dict:
        _check_type_and_bounds(value, dict, {}, name)
        hints = metadata.get("keys", {})
        for key, element in value.items():
            _check_value(element, hints.get(key, get_args(kind)[1]), {}, f"{name}.{key}")
    else:
        _check_type_and_bounds(value, kind, metadata, name)


def _check_type_and_bounds(value: Any, kind: type, metadata: Mapping[str, Any], name: str) -> None:
    right = (int, float) if kind is float else kind
    if kind in (int, float, bool, str, Path, list, dict) and (
        not isinstance(value, right) or (isinstance(value, bool) and kind is not bool)
    ):
        raise UserError(f"{name} must be of type {kind.__name__}, not {shown(value)}")
    low = metadata.get("low")
    high = metadata.get("high")
    if low is not None and not low <= value <= high:  # which NaN fails too
        raise UserError(f"{name} must be from {low} to {high}, not {shown(value)}")
