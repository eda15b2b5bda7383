"""What a field of a config says of itself, beside its type and its default."""

from dataclasses import field
from typing import Any


def from_data(default: Any) -> Any:
    """A field of a model's config that the trainer takes from the data or the frozen CLIP: no option."""
    return field(default=default, metadata={"option": False})


def free(default: Any) -> Any:
    """A field of a trainer's config that no weight depends on: two runs that differ in it alone are the same run."""
    return field(default=default, metadata={"identity": False})
