"""Make a trained pipeline ready to hand out: its weights in float16, half the size, without what training left behind.

    python -m unclip.publish checkpoints/small checkpoints/fashion-mnist

Hashes and lineage are renewed. Weights are read back as float32; rounding them moves samples by hardly a grey level.
"""

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip import signals

    signals.install()

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from unclip import cli
from unclip.checkpoint import (
    dump_tensors,
    read_manifests,
    read_weights,
    sha256,
    write_index,
)
from unclip.errors import UserError
from unclip.files import write_atomically, write_record
from unclip.registry import STAGES


@dataclass(frozen=True)
class PublishOptions:
    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a pipeline whose stages are trained."""
    target: Annotated[Path, tyro.conf.Positional]
    """Folder to write; it must not hold a pipeline yet."""


def publish(source: Path, target: Path) -> None:
    """Write the pipeline in `source` to `target` with float16 weights.

    Raises UserError if a stage is missing or unfinished, or if there is a pipeline in `target` already.
    """
    manifests = read_manifests(source)
    for stage, manifest in manifests.items():
        if not manifest.complete:
            raise UserError(f"the {stage} in {source} is still in training (step {manifest.step}); finish it first")
        if (target / stage).exists():
            raise UserError(f"{target} holds a {stage} already; choose another folder, or delete that one")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "tokenizer.json", target / "tokenizer.json")
    if (source / "captions.txt").is_file():
        shutil.copy(source / "captions.txt", target / "captions.txt")
    for stage, manifest in manifests.items():
        tensors = read_weights(source / stage, manifest)
        halves = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in tensors.items()}
        content = dump_tensors(halves)
        manifest.sha256 = sha256(content)
        manifest.source = without_paths(manifest.source)
        manifest.parents |= {parent: manifests[parent].sha256 for parent in STAGES[stage].parents}
        write_atomically(target / stage / "model.safetensors", content)
        write_record(target / stage / "config.json", asdict(manifest))
    write_index(target)


def without_paths(source: dict[str, Any]) -> dict[str, Any]:
    """What a stage notes of its data, without paths of this machine: of the source's the last name."""
    if Path(source.get("source", "")).is_absolute():
        source = source | {"source": Path(source["source"]).name}
    return source | {"root": None} if source else source


def main() -> None:
    options = cli.parse(PublishOptions, __doc__)
    publish(options.source, options.target)
    size = sum(path.stat().st_size for path in options.target.rglob("*") if path.is_file())
    print(f"{options.target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
