"""Examples to try with a pipeline: captions and images that it brings, or else its own training captions, drawn."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unclip.errors import UserError, shown
from unclip.images import to_pil
from unclip.page.pictures import is_within, open_picked
from unclip.pipeline import UnCLIP
from unclip.pixels import read_colours
from unclip.store.index import read_index
from unclip.store.sealed_json import read_json

MOST_EXAMPLES = 24
"""Captions, and images, that are offered as examples."""
OWN_EXAMPLES = 8
"""Captions that are taken from the training where a pipeline brings none."""
FEWEST_PICTURES = 4
"""Pictures that are drawn for a pipeline even if it has fewer captions."""


@dataclass(frozen=True)
class Examples:
    """Examples to try with a pipeline, from its examples/examples.json."""

    captions: tuple[str, ...]
    change: tuple[str, str]
    """Two captions for an edit: before and after."""
    images: tuple[Image.Image, ...] = ()

    @classmethod
    def read(cls, folder: Path, captions: list[str]) -> "Examples":
        """Read the examples in a pipeline's folder; without them take captions from all over those of its training.

        Raises UserError for a file of another form, and for images that are not the pipeline's own.
        """
        path = folder / "examples" / "examples.json"
        values = read_json(path) if path.is_file() else {}
        try:
            example_captions = tuple(values.get("captions", spread(captions, OWN_EXAMPLES)))
            before, after = values.get("change", (example_captions[0], example_captions[-1]))
            names = tuple(values.get("images", ()))
            if not all(isinstance(text, str) for text in (*example_captions, before, after, *names)):
                raise TypeError("its captions and names must be texts")
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{path} is not a set of examples ({error}); restore it, or delete it") from error
        images = tuple(open_example(folder, name) for name in names[:MOST_EXAMPLES])
        return cls(example_captions[:MOST_EXAMPLES], (before, after), images)


def spread(captions: list[str], count: int) -> list[str]:
    """At most `count` distinct captions from all over a list: neighbours are often of one kind."""
    distinct = list(dict.fromkeys(captions))
    count = min(count, len(distinct))
    return [distinct[(2 * i + 1) * len(distinct) // (2 * count)] for i in range(count)]


def open_example(folder: Path, name: str) -> Image.Image:
    """An image in a pipeline's examples/ that its model_index.json names. Raises UserError for any other, and links."""
    path = folder.resolve() / "examples" / name
    if not is_within(path, folder.resolve() / "examples"):
        raise UserError(
            f"{folder}/examples names {shown(name)}, which is no image of its own; restore it, or delete it"
        )
    if f"examples/{name}" not in read_index(folder).get("files", {}):
        raise UserError(
            f"{folder}/examples names {shown(name)}, which is not among the files of its model_index.json; give the "
            "last training command again, which lists it, or delete it"
        )
    return read_colours(open_picked(path), 3)


def draw_examples(pipe: UnCLIP, captions: tuple[str, ...]) -> list[Image.Image]:
    """Draw a picture of each caption in turn, and more of them if there are few."""
    count = max(len(captions), FEWEST_PICTURES)
    drawn = [captions[i % len(captions)] for i in range(count)]
    seeds = [i // len(captions) for i in range(count)]
    return [read_colours(to_pil(image), 3) for image in pipe(drawn, seed=seeds).images]
