"""Configs: what their fields say of themselves, and how they are read from JSON."""

from dataclasses import field, is_dataclass
from typing import Any, get_type_hints

from unclip.errors import UserError


def from_data(default: Any) -> Any:
    """A field of a model's config that the trainer takes from the data or the frozen CLIP: no option."""
    return field(default=default, metadata={"option": False})


def free(default: Any) -> Any:
    """A field of a trainer's config that no weight depends on: two runs that differ in it alone are the same run."""
    return field(default=default, metadata={"identity": False})


def from_dict(cls, values: dict[str, Any], where: str):
    """Build a config dataclass, nested ones included, from JSON.

    Raises UserError for a field that it lacks, or for a number that should be whole.
    """
    known = get_type_hints(cls)
    if unknown := set(values) - set(known):
        raise UserError(f"{where} has the unknown field {sorted(unknown)[0]!r}; it was written by another version")
    converted = {}
    for name, value in values.items():
        kind = known[name]
        if is_dataclass(kind):
            value = from_dict(kind, value, where)
        elif isinstance(value, list):
            value = tuple(value)
        elif kind is int and type(value) is not int:
            raise UserError(f"{where} has {name} = {value!r}, which is not a whole number")
        converted[name] = value
    return cls(**converted)
