"""Text in a PNG that says how the picture was drawn. `PIL.Image.open(file).text` reads it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from unclip.settings import Sampling


class HasOrigin(Protocol):
    """A pipeline, or the output of one."""

    origin: dict[str, Any]


def describe_picture(
    drawn_by: HasOrigin, captions: Sequence[str], seeds: Sequence[int], sampling: Sampling, **others: Any
) -> dict[str, str]:
    """Keyword -> text for `unclip.images.png_bytes`.

    Args:
        captions, seeds: of the picture's images, if they have any; one is written as it is, several as JSON.
        sampling: the settings that it was drawn with; they are written as JSON, as is the name of the pipeline with the
            SHA-256 of its parts.
        others: more of what was asked for, such as the name of an edit; written as JSON.
    """
    text = {"settings": json.dumps(asdict(sampling)), "pipeline": json.dumps(drawn_by.origin)}
    if captions:
        text["caption"] = captions[0] if len(captions) == 1 else json.dumps(list(captions), ensure_ascii=False)
    if seeds:
        text["seed"] = json.dumps(seeds[0] if len(seeds) == 1 else list(seeds))
    return text | {name: json.dumps(value, default=str) for name, value in others.items()}


def slug(caption: str) -> str:
    """A short, safe piece of a file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in caption.lower()).split()
    return "-".join(words)[:60].rstrip("-") or "image"


def picture_name(number: int, caption: str, seed: int) -> str:
    """The name of an image's file."""
    return f"{number:03d}-{slug(caption)}-seed{seed}.png"
