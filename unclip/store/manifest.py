"""The manifest of a part: its config.json, which says what its weights are and what they come from."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from unclip.errors import UserError, reason, shown
from unclip.fields import from_dict, json_table
from unclip.fitting import Fit
from unclip.registry import PARTS, default_kind
from unclip.store.checksums import abbreviated
from unclip.store.files import member
from unclip.store.formats import FORMAT, check_format, upgrade_manifest
from unclip.store.sealed_json import read_json, read_record, write_record

WITH_SCRIPT = ("clip", "prior", "decoder")
"""Parts that are trained by a script of their own."""
SHA256 = re.compile(r"[0-9a-f]{64}|")
"""A SHA-256, or none yet."""


@dataclass
class Manifest:
    """The content of a part's config.json."""

    part: str
    """The part of a pipeline, or what else was trained, such as a classifier."""
    kind: str = ""
    """The part's kind, of those in unclip/registry.py; "" for what is no part of a pipeline."""
    model: dict[str, Any] = field(default_factory=dict)
    """The model's config."""
    parents: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what this part was trained on: CLIP's tokenizer; the prior's and the decoder's CLIP."""
    data: dict[str, Any] = json_table(name=str, fingerprint=str, example=str)
    """Name and fingerprint of the training data, and one of its captions."""
    provenance: dict[str, Any] = json_table(source=str, root=str | None)
    """Where the training data came from, and how it is read. Parts that are trained later read it here."""
    training: dict[str, Any] = json_table(pretrained=str, train=dict[str, Any])
    """The trainer's settings."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """How to draw from this part, for the pipeline's model_index.json."""
    step: int = 0
    """Optimiser steps behind these weights."""
    complete: bool = False
    """Whether the training has ended."""
    figures: dict[str, float] = field(default_factory=dict)
    """Validation figures of these weights."""
    sha256: str = ""
    """SHA-256 of model.safetensors."""
    format: int = FORMAT
    """Format of the files: of a manifest that was read, the format that it and its weights have on disk."""

    def __post_init__(self):
        if self.kind == "" and self.part in PARTS:
            self.kind = default_kind(self.part)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest in the newest format. Its weights must be of that format too: see `unclip.store.parts`."""
    manifest.format = FORMAT
    write_record(folder / "config.json", asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the part in a folder.

    Raises UserError if it is damaged, of a format that this version does not read, or not there; then the message names
    the command that trains the part.
    """
    folder = Path(folder)
    path = member(folder, "config.json")
    if not path.is_file():
        part = folder.name if folder.name in PARTS else "clip"
        state = "has no trained" if folder.parent.is_dir() else "does not exist, so it has no"
        raise UserError(f"{folder.parent} {state} {part}; train it with: {training_command(part, folder.parent)}")
    check_format(read_json(path), path, "train that part again")
    try:
        manifest = from_dict(Manifest, upgrade_manifest(read_record(path)), str(path))
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the manifest of a part ({reason(error)}); train that part again") from error
    if not SHA256.fullmatch(manifest.sha256):
        raise UserError(f"{path} names no SHA-256 of weights, but {manifest.sha256!r}; train that part again")
    if manifest.part in PARTS and folder.name in PARTS and manifest.part != folder.name:
        raise UserError(f"{path} is the manifest of a {manifest.part}, not of a {folder.name}; train that part again")
    return manifest


def recorded_fit(manifest: Manifest) -> Fit:
    """How the images that a part was trained on were made square. Manifests that do not say so are of cropped ones."""
    fit = manifest.provenance.get("fit", "crop")
    if fit not in get_args(Fit):
        raise UserError(
            f"the config.json of the {manifest.part} names the fit {shown(fit)}, not {', '.join(get_args(Fit))}"
        )
    return fit


def training_command(part: str, out: Path | str) -> str:
    program = f"train_{part}.py" if part in WITH_SCRIPT else f"-m stages.train {part}"
    return f"python {program} --out {out}"


def read_manifests(pipeline: Path) -> dict[str, Manifest]:
    """The manifests of a pipeline's parts, of optional ones where they are there.

    Raises UserError if a part is missing, is another than its folder says, or was trained on other parts than the
    pipeline's.
    """
    present = [name for name, part in PARTS.items() if not part.optional or (pipeline / name / "config.json").is_file()]
    manifests = {name: read_manifest(member(pipeline, name)) for name in present}
    for name, manifest in manifests.items():
        if manifest.part != name:
            raise UserError(f"{pipeline / name} holds a {manifest.part}, not a {name}; restore it or train it again")
    check_lineage(manifests)
    return manifests


def check_lineage(manifests: Mapping[str, Manifest]) -> None:
    """Refuse a part that was trained on other parts than those beside it. Raises UserError."""
    for part, manifest in manifests.items():
        for parent in PARTS[part].parents:
            trained_on = manifest.parents.get(parent, "unknown")
            present = manifests[parent].sha256 if parent in manifests else ""
            if trained_on != present:
                raise UserError(
                    f"the {part} was trained on the {parent} {abbreviated(trained_on)}, but this pipeline holds "
                    f"{abbreviated(present) if present else 'none'}; retrain it with: {training_command(part, 'DIR')}, "
                    f"in a new DIR or without the old {part} folder"
                )


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a part whose training has ended."""
    return (folder / "config.json").is_file() and read_manifest(folder).complete
