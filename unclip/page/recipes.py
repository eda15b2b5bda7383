"""The command and the Python that draw the same as a tab. An image is called picture.png there, a mask mask.png."""

import shlex
from typing import Any

from unclip.page.drawing import single_candidate
from unclip.page.editing import AMOUNTS, FRAMES, INVERSION, summed_weights
from unclip.page.shelf import OpenPipeline
from unclip.page.values import parse_captions

Recipe = tuple[str, str]
"""A command line, and Python."""


def draw(opened: OpenPipeline, caption: str, n: int, seed: int, **settings: Any) -> Recipe:
    captions = parse_captions(caption)
    options = {"checkpoint": opened.source, "n": n, "seed": seed, **settings}
    dashes = ["--"] if any(caption.startswith("-") for caption in captions) else []  # then all that follows is captions
    command = shlex.join(["unclip", "sample", *flags(options), *dashes, *captions])
    return command, python(opened, f"pipe({arguments(captions, n=n, seed=seed, **settings)}).images")


def vary(opened: OpenPipeline, image: Any, n: int, seed: int, keep: float, **settings: Any) -> Recipe:
    options = {"n": n, "seed": seed, "keep": keep, **settings, **(INVERSION if keep else {})}
    return edit("vary", opened, ["picture.png"], options, ".images")


def blend(opened: OpenPipeline, image: Any, second: Any) -> Recipe:
    return edit("blend", opened, ["picture.png", "second.png"], {"frames": FRAMES, **INVERSION})


def change(opened: OpenPipeline, image: Any, before: str, after: str) -> Recipe:
    options = {"before": before, "after": after, "amounts": list(AMOUNTS), **INVERSION}
    return edit("change", opened, ["picture.png"], options)


def mix(opened: OpenPipeline, **values: Any) -> Recipe:
    prompts = [(values.pop(f"prompt_{i}"), values.pop(f"weight_{i}")) for i in (1, 2, 3)]
    weights = summed_weights(prompts)
    options = {"prompts": list(weights), "weights": list(weights.values()), **values}
    command = shlex.join(["unclip", "edit", "mix", *flags({"checkpoint": opened.source, **options})])
    return command, python(opened, f"edit.mix(pipe, {arguments(weights, **values)}).images")


def inpaint(opened: OpenPipeline, image: Any, strokes: Any, part: str, caption: str, n: int, seed: int) -> Recipe:
    """mask.png is white where to paint."""
    options = {"mask": "mask.png", "caption": parse_captions(caption)[0], "n": n, "seed": seed}
    command, _ = edit("inpaint", opened, ["picture.png"], options)
    values = arguments("picture.png", "mask.png", options["caption"], n=n, seed=seed)
    return command, python(opened, f"edit.inpaint(pipe, {values}).images")


def look_inside(opened: OpenPipeline, caption: str, seed: int, image: Any) -> Recipe:
    """The command draws the picture from the prior alone."""
    caption = parse_captions(caption)[0]
    settings = single_candidate(opened)
    command, _ = draw(opened, caption, 1, seed, **settings)
    lines = [
        f"embedding = pipe.embed({arguments(caption, seed=seed)})",
        f"cosine = embedding @ pipe.encode_text({caption!r}).T",
    ]
    return command, python(opened, f"pipe.decode(embedding, {arguments([caption], seed=seed, **settings)})", *lines)


def edit(name: str, opened: OpenPipeline, files: list[str], options: dict[str, Any], ending: str = "") -> Recipe:
    command = shlex.join(["unclip", "edit", name, *files, *flags({"checkpoint": opened.source, **options})])
    return command, python(opened, f"edit.{name}(pipe, {arguments(*files, **options)}){ending}")


def flags(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line."""
    words = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            words += [flag, *map(text_of, value)]
        elif str(value).startswith("-"):
            words.append(f"{flag}={value}")
        else:
            words += [flag, text_of(value)]
    return words


def text_of(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def arguments(*values: Any, **named: Any) -> str:
    return ", ".join([*map(repr, values), *(f"{name}={value!r}" for name, value in named.items())])


def python(opened: OpenPipeline, images: str, *lines: str) -> str:
    imports = "from unclip import UnCLIP, edit" if images.startswith("edit.") else "from unclip import UnCLIP"
    opening = f"pipe = UnCLIP.from_pretrained({opened.source!r})"
    return "\n".join([imports, "", opening, *lines, f"images = {images}"])
