"""The trained pipelines that the page offers: each is opened once, with examples and training captions."""

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from unclip.errors import UserError, shown
from unclip.page.examples import Examples, draw_examples
from unclip.page.watching import count_steps
from unclip.pipeline import UnCLIP
from unclip.store.hub import find_pipeline, is_hub_name
from unclip.store.index import time_completed
from unclip.store.training_captions import read_training_captions


@dataclass(eq=False)
class OpenPipeline:
    """A pipeline that is ready to draw. All visitors share it, so it never changes, except for values computed once."""

    source: str
    """Its folder, or its name on the Hugging Face Hub: what opens it elsewhere."""
    pipe: UnCLIP
    captions: list[str]
    """Captions that it was trained on, or a part of them; at least one."""
    examples: Examples

    @classmethod
    def open(cls, folder: Path, device, source: str = "") -> "OpenPipeline":
        captions = read_training_captions(folder)
        pipe = UnCLIP.from_pretrained(folder, device)
        count_steps(pipe)
        return cls(source or str(folder), pipe, captions, Examples.read(folder, captions))

    @cached_property
    def drawn_examples(self) -> list[Image.Image]:
        """Pictures that the pipeline draws of its example captions."""
        return draw_examples(self.pipe, self.examples.captions)

    @property
    def example_images(self) -> list[Image.Image]:
        """Images to edit: those that the pipeline brings, or else pictures that it draws."""
        return list(self.examples.images) or self.drawn_examples

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
                source = name if is_hub_name(name) else ""
                self.opened[name] = OpenPipeline.open(self.folders[name], self.device, source)
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
