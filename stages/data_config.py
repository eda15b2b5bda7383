"""The data to train on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.dataset import CaptionedImages
from data.provenance import compare_content, compare_source, inherit_source, read_provenance
from data.source_config import SourceConfig
from data.sources import load_splits
from data.stream.streamed_images import open_stream
from stages.runtime import is_main, main_first
from unclip.cli.options import EarlyOptions
from unclip.errors import printable
from unclip.store.hub import find_pipeline
from unclip.store.manifest import read_manifest


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    def load(self, *splits: str, held_out: bool = False) -> list[CaptionedImages]:
        """Load splits, see `data.sources.load_splits` and `data.stream`. One rank decodes the images for the others."""
        with main_first():
            if self.stream:
                return open_stream(self, splits)
            return load_splits(self, splits, held_out)

    def load_as(self, pipeline: Path, *splits: str) -> list[CaptionedImages]:
        """The same, the training images first; a line says whether they are those that a pipeline was trained on.

        Raises UserError if they should be, but are not on this machine.
        """
        same = compare_source(pipeline, self, _tell)
        loaded = self.load(*splits)
        if same:
            compare_content(pipeline, loaded[0], _tell)
        return loaded


def inherit_data(part: str, presets: dict[str, Any], named: EarlyOptions) -> dict[str, Any]:
    """A trainer's presets, with the data of the pipeline that the command line names by --clip, --out or --init-from.

    Args:
        part: the part to train. If it is in --out, this training goes on, with the size that it was begun with.
        presets: name -> the config of a training.
        named: these options and --data, as the command line gives them.
    """
    preset = next(iter(presets.values()))
    out = Path(preset.out if named.out is None else named.out)
    pipelines = [Path(named.clip)] if named.clip else []
    pipelines.append(out)
    if named.init_from:
        pipelines.append(find_pipeline(named.init_from))
    pipeline = next((path for path in pipelines if read_provenance(path, preset.data)), out)
    data = {name: inherit_source(pipeline, run.data, named.data) for name, run in presets.items()}
    if (out / part / "config.json").is_file() and (begun := read_manifest(out / part).training.get("data")):
        data = {name: replace(config, size=begun.get("size")) for name, config in data.items()}
    return {name: replace(run, data=data[name]) for name, run in presets.items()}


def _tell(line: str) -> None:
    """Print a line about the data to standard output, once for all ranks."""
    if is_main():
        print(printable(line), flush=True)
