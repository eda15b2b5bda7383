"""Which data to train on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.dataset import CaptionedImages
from data.provenance import compare_content, compare_source, inherit_source, read_provenance
from data.sources import SourceConfig, load
from stages.runtime import is_main, main_first
from unclip.cli import options as cli
from unclip.store.hub import find_pipeline


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    def load(self, *splits: str, held_out: bool = False) -> list[CaptionedImages]:
        """The splits, as `data.sources.load` gives them; one rank fetches and decodes what the others then find."""
        with main_first():
            return load(self, splits, held_out)

    def load_as(self, pipeline: Path, *splits: str) -> list[CaptionedImages]:
        """The same, the training images first; a line says whether they are those that a pipeline was trained on.

        Raises UserError if they should be, but are not on this machine.
        """
        same = compare_source(pipeline, self, _tell)
        found = self.load(*splits)
        if same:
            compare_content(pipeline, found[0], _tell)
        return found


def on_pipeline(presets: dict[str, Any]) -> dict[str, Any]:
    """A trainer's presets, with the data of the pipeline that the command line names: its --clip, --out, or start."""
    preset = next(iter(presets.values()))
    out = Path(cli.argument("out", str(preset.out)))
    start = cli.argument("init-from")
    named = [Path(path) for path in (cli.argument("clip"), out, start and find_pipeline(start)) if path]
    pipeline = next((path for path in named if read_provenance(path, preset.data)), out)
    return {name: replace(run, data=inherit_source(pipeline, run.data)) for name, run in presets.items()}


def _tell(line: str) -> None:
    """What is read is no error: it goes to standard output, once for all ranks."""
    if is_main():
        print(line, flush=True)
