"""Describe a pipeline: its parts, their sizes and figures, the data that it was trained on, and how it samples.

unclip info                                  # the newest complete pipeline under checkpoints/
unclip info checkpoints/run
unclip info owner/name                       # on the Hugging Face Hub
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unclip.cli.options import parse
from unclip.errors import UserError, quantity, reason
from unclip.registry import PARTS
from unclip.settings import SAMPLING_OPTIONS, SamplingOptions
from unclip.store.checksums import abbreviated
from unclip.store.hub import find_pipeline
from unclip.store.index import newest_pipeline, read_sampling
from unclip.store.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class InfoOptions:
    pipeline: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a pipeline, or its name OWNER/NAME on the Hugging Face Hub (default: the newest complete one under
    checkpoints/, else the committed one)."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(InfoOptions, __doc__, argv=argv)
    pipeline = options.pipeline or newest_pipeline(Path("checkpoints"))
    folder = find_pipeline(pipeline)
    for line in describe_pipeline(str(pipeline), folder):
        print(line)


def describe_pipeline(name: str, folder: Path) -> Iterator[str]:
    """Lines that describe a pipeline, whether it is complete or not. Raises UserError if the folder holds none."""
    manifests = {part: read_manifest(folder / part) for part in PARTS if (folder / part / "config.json").is_file()}
    if not manifests:
        raise UserError(f"{folder} holds no part of a pipeline ({', '.join(PARTS)}); name the folder of a pipeline")
    yield name
    for part, row in PARTS.items():
        if part in manifests:
            yield from describe_part(folder / part, manifests[part])
        elif not row.optional:
            yield f"{part}: not trained yet"
    first = next(iter(manifests.values()))
    source = first.provenance.get("source")
    yield f"data: {first.data.get('name', 'unknown')}{f', from --data {source}' if source else ''}"
    if example := first.data.get("example"):
        yield f"a caption of it: {example}"
    options = SamplingOptions.of(read_sampling(folder))
    yield "sampling: " + ", ".join(f"{option} {format_value(getattr(options, option))}" for option in SAMPLING_OPTIONS)


def describe_part(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Lines about one part: its kind, size, training, and figures."""
    state = quantity(manifest.step, "step") if manifest.complete else f"in training, step {manifest.step}"
    path = folder / "model.safetensors"
    size = f"{count_values(path):,} parameters, {path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "no weights"
    yield f"{manifest.part}: {manifest.kind}, {size}, {state}, SHA-256 {abbreviated(manifest.sha256)}"
    if manifest.figures:
        yield "  " + ", ".join(f"{name} {format_value(value)}" for name, value in manifest.figures.items())


def count_values(path: Path) -> int:
    """The number of parameters in a file of weights, buffers included, from the header alone.

    Raises UserError if it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({reason(error)}); restore it or train that part again") from error


def format_value(value: object) -> str:
    """A setting or a figure as it is printed."""
    if isinstance(value, tuple):
        return "-".join(map(format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
