"""The trained pipelines that the page offers: each is opened once, with examples and training captions."""

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from unclip.errors import UserError, shown
from unclip.page.pictures import is_within, open_picked
from unclip.pipeline import UnCLIP
from unclip.pixels import read_colours
from unclip.store.hub import find_pipeline, is_hub_name
from unclip.store.index import read_index, time_completed
from unclip.store.sealed_json import read_json
from unclip.store.training_captions import read_training_captions

MOST_EXAMPLES = 24
"""Captions, and images, that are offered as examples."""


@dataclass(frozen=True)
class Examples:
    """Examples to try with a pipeline, from its examples/examples.json."""

    captions: tuple[str, ...]
    change: tuple[str, str]
    """Two captions for an edit: before and after."""
    images: tuple[Image.Image, ...] = ()

    @classmethod
    def read(cls, folder: Path, captions: list[str]) -> "Examples":
        """Read the examples in a pipeline's folder; without them take the first captions that it was trained on.

        Raises UserError for a file of another form, and for images that are not the pipeline's own.
        """
        path = folder / "examples" / "examples.json"
        values = read_json(path) if path.is_file() else {}
        try:
            example_captions = tuple(values.get("captions", captions[:8]))
            before, after = values.get("change", (example_captions[0], example_captions[-1]))
            names = tuple(values.get("images", ()))
            if not all(isinstance(text, str) for text in (*example_captions, before, after, *names)):
                raise TypeError("its captions and names must be texts")
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{path} is not a set of examples ({error}); restore it, or delete it") from error
        images = tuple(open_example(folder, name) for name in names[:MOST_EXAMPLES])
        return cls(example_captions[:MOST_EXAMPLES], (before, after), images)


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


@dataclass(eq=False)
class OpenPipeline:
    """A pipeline that is ready to draw. All visitors share it, so it never changes, except for values computed once."""

    folder: Path
    pipe: UnCLIP
    captions: list[str]
    """Captions that it was trained on, or a part of them; at least one."""
    examples: Examples

    @classmethod
    def open(cls, folder: Path, device) -> "OpenPipeline":
        captions = read_training_captions(folder)
        return cls(folder, UnCLIP.from_pretrained(folder, device), captions, Examples.read(folder, captions))

    @cached_property
    def text_embeddings(self) -> Tensor:
        """CLIP's embeddings (N, D) of the training captions."""
        return self.pipe.encode_text(self.captions)


class Shelf:
    """The pipelines that `complete_pipelines` finds, by name, the newest first."""

    def __init__(self, folder: Path, device="cpu"):
        """Raises UserError if there are none."""
        self.folder = folder
        self.device = device
        self.folders = complete_pipelines(folder)
        self.names = list(self.folders)
        self.opened: dict[str, OpenPipeline] = {}
        self.lock = threading.Lock()
        if not self.names:
            raise UserError(f"no trained pipeline under {folder}; train one with: make demo, or name another folder")

    def open(self, name: str) -> OpenPipeline:
        """The pipeline of this name, opened at the first call. Raises UserError if it cannot be used."""
        if name not in self.names:
            raise UserError(
                f"there is no pipeline {shown(name)} under {self.folder}; choose from {', '.join(self.names)}"
            )
        with self.lock:
            if name not in self.opened:
                self.opened[name] = OpenPipeline.open(self.folders[name], self.device)
            return self.opened[name]


def complete_pipelines(source: Path) -> dict[str, Path]:
    """Find pipelines whose parts are all trained: name -> folder, the newest first.

    The source is a folder of pipelines, the folder of one pipeline, or a pipeline's name on the Hugging Face Hub.
    """
    folder = find_pipeline(source)
    if is_hub_name(source) or (folder / "model_index.json").is_file():
        name = source.as_posix() if is_hub_name(source) else folder.resolve().name
        folders = {name: folder}
    else:
        folders = {path.name: path for path in folder.glob("*/")}
    times = {name: time_completed(path) for name, path in folders.items()}
    return {
        name: folders[name] for name in sorted(filter(times.get, times), key=lambda name: times[name], reverse=True)
    }
