"""Make a trained pipeline ready to hand out: its weights in float16, half the size, without what training left behind.

    python -m unclip.store.publish checkpoints/run checkpoints/published
    python -m unclip.store.publish checkpoints/run --to-hub owner/name            # log in first: hf auth login

README.md becomes a model card in the Hugging Face Hub's form: licence, data, recipe, figures, and a grid of samples.
The report of `python -m stages.evaluate` joins it where it is of the same weights. To change the card by hand publish
into a folder, and upload that with: hf upload OWNER/NAME DIR. A repository that is not there yet is made, and is
public; for a private one make it on the Hub first. Hashes and lineage are renewed. Weights are read back as float32;
rounding them moves samples by hardly a grey level.
"""

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip.cli import signals

    signals.install()

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from unclip.cli import options as cli
from unclip.devices import pick_device
from unclip.errors import UserError
from unclip.grids import captioned_grid
from unclip.images import save_png
from unclip.pipeline import UnCLIP
from unclip.registry import PARTS
from unclip.store.checkpoint import (
    Manifest,
    dump_tensors,
    read_manifests,
    read_weights,
    sha256,
    training_captions,
    write_index,
)
from unclip.store.files import make_folder, partial_name, read_json, remove_leftovers, write_atomically, write_record
from unclip.store.hub import check_upload, is_name, upload
from unclip.store.model_card import is_report_of, model_card

REPORT = ("evaluation.json", "evaluation.md", "*.png")
SHOWN = (8, 8)
"""Captions, and samples of each, in the card's picture."""


@dataclass(frozen=True)
class PublishOptions:
    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a pipeline whose stages are trained."""
    target: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder to write; it must not hold a pipeline yet. With --to-hub it may be left out."""
    to_hub: str | None = None
    """Also put it on the Hugging Face Hub under this name, OWNER/NAME."""
    license: str | None = None
    """Licence of the weights, in the Hub's spelling: mit, cc-by-4.0 (default: that of the data, where it is known)."""
    evaluation: Path | None = None
    """Folder with the report of `python -m stages.evaluate` (default: outputs/evaluation/NAME)."""


def publish(source: Path, target: Path, name: str, licence: str | None = None, evaluation: Path | None = None) -> None:
    """Write the pipeline in `source` to `target` with float16 weights and a model card.

    Args:
        name: what the card calls it.
        licence: of the weights; see `model_card`.
        evaluation: the folder of a report, which joins the card if it is of these weights.

    Raises UserError if a stage is missing or unfinished, or if there is a pipeline in `target` already.
    """
    manifests = read_manifests(source)
    for stage, manifest in manifests.items():
        if not manifest.complete:
            raise UserError(f"the {stage} in {source} is still in training (step {manifest.step}); finish it first")
        if (target / stage).exists():
            raise UserError(f"{target} holds a {stage} already; choose another folder, or delete that one")
    report = read_report(evaluation, manifests)
    make_folder(target)
    remove_leftovers(target)
    whole = partial_name(target / "pipeline")  # so that what is cut short is not taken for a pipeline
    try:
        whole.mkdir()
        _write(source, whole, manifests, report, evaluation)
        pipe = UnCLIP.from_pretrained(whole, pick_device("auto"))
        shape = draw_samples(pipe, whole / "samples.png")
        write_atomically(whole / "README.md", model_card(name, licence, manifests, pipe, shape, report))
        for path in whole.iterdir():
            os.replace(path, target / path.name)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def _write(
    source: Path, target: Path, manifests: dict[str, Manifest], report: dict[str, Any], evaluation: Path | None
) -> None:
    """The pipeline in `source` in float16, with its manifests as they are then, and its report if there is one."""
    shutil.copy(source / "tokenizer.json", target / "tokenizer.json")
    if (source / "captions.txt").is_file():
        shutil.copy(source / "captions.txt", target / "captions.txt")
    if report:
        for path in (path for pattern in REPORT for path in evaluation.glob(pattern)):
            shutil.copy(path, target / path.name)
    pretrained = manifests["clip"].training.get("pretrained")
    if pretrained and not is_name(pretrained):  # where it lies on this machine concerns nobody else
        manifests["clip"].training["pretrained"] = Path(pretrained).name
    for stage, manifest in manifests.items():
        tensors = read_weights(source / stage, manifest)
        halves = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in tensors.items()}
        content = dump_tensors(halves)
        manifest.sha256 = sha256(content)
        manifest.source = without_paths(manifest.source)
        manifest.parents |= {parent: manifests[parent].sha256 for parent in PARTS[stage].parents}
        write_atomically(target / stage / "model.safetensors", content)
        write_record(target / stage / "config.json", asdict(manifest))
    write_index(target)


def read_report(folder: Path | None, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The evaluation in a folder, if there is one of just these weights; else nothing, which is said.

    Raises UserError for a file that is no such report.
    """
    path = folder / "evaluation.json" if folder else None
    if path is None or not path.is_file():
        print("the card has no evaluation; make one first with: python -m stages.evaluate --checkpoint DIR")
        return {}
    report = read_json(path)
    if not is_report_of(manifests, report, path):
        print(f"{path} is of other weights, and is left out")
        return {}
    return report


def draw_samples(pipe: UnCLIP, path: Path) -> tuple[int, int, int]:
    """A picture of samples of captions from all over the training data. Returns an image's height, width, channels."""
    captions, n = training_captions(path.parent), SHOWN[1]
    shown = list(dict.fromkeys(captions[:: max(1, len(captions) // SHOWN[0])]))[: SHOWN[0]]
    images = pipe(shown, n).images
    rows = images.reshape(len(shown), n, *images.shape[1:])
    save_png(path, captioned_grid(list(zip(shown, rows, strict=True))))
    return images.shape[1:]


def without_paths(source: dict[str, Any]) -> dict[str, Any]:
    """What a stage notes of its data, without paths of this machine: of the source's the last name."""
    if Path(source.get("source", "")).is_absolute():
        source = source | {"source": Path(source["source"]).name}
    return source | {"root": None} if source else source


def main() -> None:
    options = cli.parse(PublishOptions, __doc__)
    name = options.to_hub or (options.target.resolve().name if options.target else "")
    if not name:
        raise UserError("nowhere to publish to; name a folder, or --to-hub OWNER/NAME, or both")
    if options.to_hub:
        check_upload(options.to_hub)
    if options.evaluation and not (options.evaluation / "evaluation.json").is_file():
        raise UserError(f"{options.evaluation} holds no evaluation.json; make one with: python -m stages.evaluate")
    evaluation = options.evaluation or Path("outputs") / "evaluation" / options.source.resolve().name
    with tempfile.TemporaryDirectory() as temporary:
        target = options.target or Path(temporary)
        publish(options.source, target, name, options.license, evaluation)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        where = upload(target, options.to_hub) if options.to_hub else target
    print(f"{where}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
