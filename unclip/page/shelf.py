"""The trained pipelines in a folder, as the page offers them: opened once, with examples and training captions."""

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from unclip.errors import UserError
from unclip.pipeline import UnCLIP
from unclip.store.hub import find_pipeline, is_hub_name
from unclip.store.index import time_completed
from unclip.store.sealed_json import read_json
from unclip.store.training_captions import read_training_captions


@dataclass(frozen=True)
class Examples:
    """What a visitor can try at once with a pipeline: DIR/examples/examples.json."""

    captions: tuple[str, ...]
    change: tuple[str, str]
    """Before and after, for the edit by text."""
    images: tuple[Path, ...] = ()

    @classmethod
    def read(cls, folder: Path, captions: list[str]) -> "Examples":
        """Those in the pipeline's folder, else the first of the captions that it was trained on.

        Raises UserError for a file that is not as it should be.
        """
        path = folder / "examples" / "examples.json"
        own = read_json(path) if path.is_file() else {}
        try:
            shown = tuple(own.get("captions", captions[:8]))
            change = tuple(own.get("change", (shown[0], shown[-1])))
            images = tuple(path.parent / name for name in own.get("images", ()))
        except (AttributeError, TypeError, IndexError) as error:
            raise UserError(f"{path} is not a set of examples ({error}); restore it, or delete it") from error
        return cls(shown, change, images)


@dataclass(eq=False)
class OpenPipeline:
    """A pipeline that is ready to draw. Shared by all visitors, so nothing here changes but what is computed once."""

    folder: Path
    pipe: UnCLIP
    captions: list[str]
    """What it was trained on, or a part of that; one caption at least."""
    examples: Examples

    @classmethod
    def open(cls, folder: Path, device) -> "OpenPipeline":
        captions = read_training_captions(folder)
        return cls(folder, UnCLIP.from_pretrained(folder, device), captions, Examples.read(folder, captions))

    @cached_property
    def text(self) -> Tensor:
        """CLIP's embeddings of the training captions, (N, D)."""
        return self.pipe.encode_text(self.captions)


class Shelf:
    """The complete pipelines that `complete_pipelines` finds, by name, the newest first."""

    def __init__(self, folder: Path, device="cpu"):
        """Raises UserError if there are none."""
        self.folder, self.device = folder, device
        self.folders = complete_pipelines(folder)
        self.names = list(self.folders)
        self.opened: dict[str, OpenPipeline] = {}
        self.lock = threading.Lock()
        if not self.names:
            raise UserError(f"no trained pipeline under {folder}; train one with: make demo, or name another folder")

    def open(self, name: str) -> OpenPipeline:
        """The pipeline of that name, opened at the first call. Raises UserError if it cannot be used."""
        if name not in self.names:
            raise UserError(f"there is no pipeline {name!r} under {self.folder}; choose from {', '.join(self.names)}")
        with self.lock:
            if name not in self.opened:
                self.opened[name] = OpenPipeline.open(self.folders[name], self.device)
            return self.opened[name]


def complete_pipelines(source: Path) -> dict[str, Path]:
    """The folders of pipelines whose stages are all trained, by name, the newest first: those in a folder of them, or
    the one in this folder, or of this name on the Hugging Face Hub."""
    folder = find_pipeline(source)
    if is_hub_name(source) or (folder / "model_index.json").is_file():
        found = {source.as_posix() if is_hub_name(source) else folder.resolve().name: folder}
    else:
        found = {path.name: path for path in folder.glob("*/")}
    times = {name: time_completed(path) for name, path in found.items()}
    return {name: found[name] for name in sorted(filter(times.get, times), key=times.get, reverse=True)}
