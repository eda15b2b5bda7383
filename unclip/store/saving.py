"""Saving of an opened pipeline, after changes of its weights or its settings too, and putting it on the Hub."""

import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.fields import from_dict
from unclip.registry import PARTS, kind_of
from unclip.store.checksums import abbreviated, sha256
from unclip.store.files import member, new_folder, write_atomically
from unclip.store.hub import check_upload, upload
from unclip.store.index import read_index, write_index
from unclip.store.manifest import Manifest, read_manifest
from unclip.store.parts import read_weights, save_weights
from unclip.store.readme import write_readme
from unclip.store.stored_sampling import write_sampling

if TYPE_CHECKING:
    from unclip.pipeline import UnCLIP


class Saved:
    """A part as it is to be saved: its manifest, its weights, and whether they are others than those of its folder."""

    def __init__(self, pipe: "UnCLIP", part: str, model: nn.Module):
        kind = kind_of(part, model)
        if kind is None:
            raise UserError(
                f"the {part} is a {type(model).__name__}, which no row of unclip/registry.py names; add one"
            )
        manifest = stored_manifest(pipe, part)
        self.tensors: dict[str, Tensor] = model.state_dict()
        self.is_changed = True
        if manifest is None:
            origin = {"pretrained": "unnamed"} if part == "clip" and pipe.preprocess.fit is None else {}
            self.manifest = Manifest(part, kind, provenance={"fit": pipe.fit}, training=origin, complete=True)
            return
        stored = read_weights(folder_of(pipe) / part, manifest)
        config: Any = model.config
        config_changed = kind != manifest.kind or from_dict(type(config), manifest.model, part) != config
        self.is_changed = config_changed or not is_same(self.tensors, stored)
        if self.is_changed:
            history = manifest.training | {"changed_from": manifest.sha256}
            self.manifest = replace(manifest, kind=kind, figures={}, training=history, complete=True)
        else:
            self.manifest = manifest
            self.tensors = stored


def save_pipeline(pipe: "UnCLIP", folder: Path) -> dict[str, Manifest]:
    """Write a pipeline to a new folder, or to the one that it was opened from. Returns the manifests of its parts.

    Parts that are as they were opened keep their weights to the bit. Changed ones get a new SHA-256, under which those
    that were trained on them are recorded; their figures, which are of other weights, are dropped.

    Raises UserError if a part has changed and one that was trained on it has not; and for a folder that holds a
    pipeline already.
    """
    parts = {part: Saved(pipe, part, model) for part, model in pipe.parts.items()}
    check_trained_together(parts)
    files = {"tokenizer.json": pipe.tokenizer.to_json().encode()} | other_files(pipe)
    if pipe.folder and folder.exists() and os.path.samefile(pipe.folder, folder):
        _write(pipe, folder, parts, files)
    else:
        with new_folder(folder) as temporary:
            _write(pipe, temporary, parts, files)
    manifests = {part: saved.manifest for part, saved in parts.items()}
    write_readme(folder, manifests)
    return manifests


def _write(pipe: "UnCLIP", folder: Path, parts: dict[str, Saved], files: dict[str, bytes]) -> None:
    for name, content in files.items():
        if name.startswith("examples/") and not (folder / name).exists():
            write_atomically(folder / name, content)
    for part, saved in parts.items():
        manifest = saved.manifest
        parents = {parent: parts[parent].manifest.sha256 for parent in PARTS[part].parents}
        if part == "clip":
            parents = {"tokenizer": sha256(files["tokenizer.json"])}
        is_there = (folder / part / "config.json").is_file()
        if is_there and not saved.is_changed and manifest.parents | parents == manifest.parents:
            continue
        write_index(folder, leave_out=part)
        manifest.parents = manifest.parents | parents
        manifest.model = asdict(pipe.parts[part].config)
        save_weights(folder / part, saved.tensors, manifest)
    write_index(folder, files={name: content for name, content in files.items() if "/" not in name})
    write_sampling(folder, pipe.sampling)


def check_trained_together(parts: dict[str, Saved]) -> None:
    """Raise UserError for a part that has not changed, but that was trained on one that has."""
    for part, saved in parts.items():
        for parent in PARTS[part].parents:
            if parts[parent].is_changed and not saved.is_changed:
                raise UserError(
                    f"the {parent} has other weights than those that the {part} was trained on, "
                    f"{abbreviated(saved.manifest.parents.get(parent, 'unknown'))}; train the {part} on it too, "
                    f"or restore the {parent}"
                )


def stored_manifest(pipe: "UnCLIP", part: str) -> Manifest | None:
    """The manifest of a part in the folder that the pipeline was opened from; None for a part that was not there.

    Raises UserError if the folder is gone, or holds other weights by now.
    """
    opened = pipe.manifests.get(part)
    if opened is None:
        return None
    folder = folder_of(pipe)
    present = read_manifest(folder / part) if (folder / part / "config.json").is_file() else None
    if present is None or present.sha256 != opened.sha256:
        raise UserError(f"{folder} no longer holds the {part} that this pipeline was opened with; restore it to save")
    return present


def folder_of(pipe: "UnCLIP") -> Path:
    assert pipe.folder is not None, "a pipeline with manifests was opened from a folder"
    return pipe.folder


def other_files(pipe: "UnCLIP") -> dict[str, bytes]:
    """The captions and the examples of the folder that the pipeline was opened from."""
    if pipe.folder is None:
        return {}
    names = [name for name in read_index(pipe.folder).get("files", {}) if name.startswith("examples/")]
    if member(pipe.folder, "captions.txt").is_file():
        names.append("captions.txt")
    return {name: member(pipe.folder, name).read_bytes() for name in names}


def is_same(tensors: dict[str, Tensor], stored: dict[str, Tensor]) -> bool:
    """Whether weights are those stored, or those rounded to half precision."""
    return tensors.keys() == stored.keys() and all(
        is_rounding(tensor.cpu(), stored[name]) for name, tensor in tensors.items()
    )


def is_rounding(tensor: Tensor, stored: Tensor) -> bool:
    """Whether a tensor is another one, read as float32, in its own type of numbers or rounded on the way."""
    if not stored.is_floating_point():
        return torch.equal(tensor, stored)
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    return any(torch.equal(tensor, stored.float().to(kind).to(tensor.dtype)) for kind in kinds)


def push_pipeline(pipe: "UnCLIP", name: str, licence: str | None = None) -> str:
    """Save a pipeline, and publish it on the Hub as `unclip publish --to-hub` does. Returns its address there."""
    from unclip.store.publish import publish  # it opens pipelines itself

    check_upload(name)
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "saved"
        published = Path(temporary) / "published"
        save_pipeline(pipe, saved)
        return upload(published, name, publish(saved, published, name, licence))
