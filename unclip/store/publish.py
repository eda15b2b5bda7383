"""Publishing of a trained pipeline: a copy in float16 with a model card, without the states of training."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from unclip.devices import pick_device
from unclip.errors import UserError
from unclip.grids import captioned_grid
from unclip.images import save_png
from unclip.pipeline import UnCLIP
from unclip.registry import PARTS
from unclip.store.files import make_folder, partial_name, remove_leftovers, write_atomically
from unclip.store.hub import is_hub_name
from unclip.store.index import read_sampling, write_index
from unclip.store.manifest import Manifest, read_manifests
from unclip.store.model_card import is_report_of, model_card
from unclip.store.parts import read_weights, save_weights
from unclip.store.sealed_json import read_json
from unclip.store.stored_sampling import write_sampling
from unclip.store.training_captions import read_training_captions

REPORT = ("evaluation.json", "evaluation.md", "*.png")
"""Patterns of the files of a report that are published with a pipeline."""
GRID_CAPTIONS = 8
"""Captions in the card's picture."""
GRID_SAMPLES = 8
"""Samples of each of these captions."""


def publish(source: Path, target: Path, name: str, licence: str | None = None, evaluation: Path | None = None) -> None:
    """Write the pipeline in `source` to `target` with float16 weights and a model card.

    Args:
        name: what the card calls it.
        licence: of the weights; see `model_card`.
        evaluation: the folder of a report, which joins the card if it is of these weights.

    Raises UserError if a part is missing or unfinished, or if there is a pipeline in `target` already.
    """
    manifests = read_manifests(source)
    for part, manifest in manifests.items():
        if not manifest.complete:
            raise UserError(f"the {part} in {source} is still in training (step {manifest.step}); finish it first")
        if (target / part).exists():
            raise UserError(f"{target} holds a {part} already; choose another folder, or delete that one")
    report = read_report(evaluation, manifests)
    make_folder(target)
    remove_leftovers(target)
    temporary = partial_name(target / "pipeline")  # if this is cut short, the folder is not taken for a pipeline
    try:
        temporary.mkdir()
        _copy_in_float16(source, temporary, manifests, report, evaluation)
        pipe = UnCLIP.from_pretrained(temporary, pick_device("auto"))
        shape = draw_samples(pipe, temporary / "samples.png")
        write_atomically(temporary / "README.md", model_card(name, licence, manifests, pipe, shape, report))
        for path in temporary.iterdir():
            os.replace(path, target / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_in_float16(
    source: Path, target: Path, manifests: dict[str, Manifest], report: dict[str, Any], evaluation: Path | None
) -> None:
    """Copy the pipeline in `source`, its weights in float16, and its report if there is one.

    Brings `manifests` up to date with the copy.
    """
    shutil.copy(source / "tokenizer.json", target / "tokenizer.json")
    if (source / "captions.txt").is_file():
        shutil.copy(source / "captions.txt", target / "captions.txt")
    if report and evaluation:
        for path in (path for pattern in REPORT for path in evaluation.glob(pattern)):
            shutil.copy(path, target / path.name)
    pretrained = manifests["clip"].training.get("pretrained")
    if pretrained and not is_hub_name(pretrained):  # the path on this machine concerns nobody else
        manifests["clip"].training["pretrained"] = Path(pretrained).name
    for part, manifest in manifests.items():
        tensors = read_weights(source / part, manifest)
        halves = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in tensors.items()}
        manifest.provenance = without_paths(manifest.provenance)
        manifest.parents |= {parent: manifests[parent].sha256 for parent in PARTS[part].parents}
        save_weights(target / part, halves, manifest)
    write_index(target)
    write_sampling(target, read_sampling(source))


def read_report(folder: Path | None, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The evaluation in a folder if it is one of these very weights; else {}, and a line that says why.

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
    """Draw a grid of samples, of captions from all over the training data.

    Returns an image's height, width, channels.
    """
    captions = read_training_captions(path.parent)
    spread = captions[:: max(1, len(captions) // GRID_CAPTIONS)]
    shown = list(dict.fromkeys(spread))[:GRID_CAPTIONS]
    images = pipe(shown, GRID_SAMPLES).images
    rows = images.reshape(len(shown), GRID_SAMPLES, *images.shape[1:])
    save_png(path, captioned_grid(list(zip(shown, rows, strict=True))))
    return images.shape[1:]


def without_paths(provenance: dict[str, Any]) -> dict[str, Any]:
    """A provenance without paths of this machine: of the source's path the last name stays."""
    if Path(provenance.get("source", "")).is_absolute():
        provenance = provenance | {"source": Path(provenance["source"]).name}
    return provenance | {"root": None} if provenance else provenance
