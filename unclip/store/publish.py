"""Publishing of a trained pipeline: a copy in float16 with a model card, without the states of training."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unclip.devices import pick_device
from unclip.errors import UserError
from unclip.grids import captioned_grid
from unclip.images import save_png
from unclip.pipeline import UnCLIP
from unclip.registry import PARTS
from unclip.store.files import check_absent, member, new_folder, write_atomically
from unclip.store.hub import is_hub_name
from unclip.store.index import check_files, read_index, read_sampling, write_index
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


def publish(
    source: Path, target: Path, name: str, licence: str | None = None, evaluation: Path | None = None
) -> list[str]:
    """Write the pipeline in `source` to `target` with float16 weights and a model card.

    Args:
        name: what the card calls it.
        licence: of the weights; see `model_card`.
        evaluation: the folder of a report, which joins the card if it is of these weights.

    Returns the names of the files, relative to `target`. Raises UserError if a part is missing, unfinished or changed,
    or if `target` holds one of these files already.
    """
    manifests = read_manifests(source)
    for part, manifest in manifests.items():
        if not manifest.complete:
            raise UserError(f"the {part} in {source} is still in training (step {manifest.step}); finish it first")
        if (target / part).exists():
            raise UserError(f"{target} holds a {part} already; choose another folder, or delete that one")
    check_files(source, manifests)
    report = read_report(evaluation, manifests)
    reported = report_files(evaluation) if report and evaluation else []
    names = ["model_index.json", "README.md", "tokenizer.json", "captions.txt", "samples.png", "examples"]
    check_absent(target, [*names, *(path.name for path in reported)])
    with new_folder(target) as temporary:
        for path in reported:
            write_atomically(temporary / path.name, path.read_bytes())
        _copy_in_float16(source, temporary, manifests)
        pipe = UnCLIP.from_pretrained(temporary, pick_device("auto"))
        shape = draw_samples(pipe, temporary / "samples.png")
        write_atomically(temporary / "README.md", model_card(name, licence, manifests, pipe, shape, report))
        return [path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file()]


def _copy_in_float16(source: Path, target: Path, manifests: dict[str, Manifest]) -> None:
    """Copy the pipeline in `source`, its weights in float16. Brings `manifests` up to date with the copy."""
    for name in read_index(source).get("files", {}):
        if name.startswith("examples/"):
            write_atomically(target / name, member(source, name).read_bytes())
    captions = member(source, "captions.txt")
    texts = [member(source, "tokenizer.json"), *([captions] if captions.is_file() else [])]
    pretrained = manifests["clip"].training.get("pretrained")
    if pretrained and not is_hub_name(pretrained):  # the path on this machine concerns nobody else
        manifests["clip"].training["pretrained"] = Path(pretrained).name
    for part, manifest in manifests.items():
        tensors = read_weights(source / part, manifest)
        halves = {name: in_float16(tensor) for name, tensor in tensors.items()}
        manifest.provenance = without_paths(manifest.provenance)
        manifest.parents |= {parent: manifests[parent].sha256 for parent in PARTS[part].parents}
        save_weights(target / part, halves, manifest)
    write_index(target, files={path.name: path.read_bytes() for path in texts})
    write_sampling(target, read_sampling(source))


def in_float16(tensor: Tensor) -> Tensor:
    """A tensor in float16, or as it is if its values do not fit: those beyond 65,504, and those near zero alone."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return tensor
    half = tensor.to(torch.float16)
    error = (half.to(tensor.dtype) - tensor).abs().max()
    return half if error <= tensor.abs().max() / 1024 else tensor


def report_files(folder: Path) -> list[Path]:
    """The files of a report that are published; links are none."""
    paths = [path for pattern in REPORT for path in sorted(folder.glob(pattern))]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


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
