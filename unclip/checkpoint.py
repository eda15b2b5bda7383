"""Pipelines on disk: one folder, one pipeline; every stage with its weights, its config, and where it comes from.

    NAME/model_index.json             which stages there are, with the SHA-256 of their weights
    NAME/tokenizer.json
    NAME/{clip,prior,decoder}/config.json, model.safetensors

A stage's config.json is its manifest: the format's version, the model's config, the SHA-256 of its weights, that of
its parents, and the fingerprint of its data. Nothing is unpickled.
"""

import hashlib
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.files import read_json, write_atomically, write_json

FORMAT = 1
STAGES = ("clip", "prior", "decoder")
M = TypeVar("M", bound=nn.Module)


@dataclass
class Manifest:
    """A stage's config.json."""

    stage: str
    model: dict[str, Any] = field(default_factory=dict)
    """The model's config."""
    parents: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what this stage was trained on: CLIP's tokenizer; the prior's and the decoder's CLIP."""
    data: dict[str, Any] = field(default_factory=dict)
    """Name and fingerprint of the training data."""
    training: dict[str, Any] = field(default_factory=dict)
    """The trainer's settings."""
    step: int = 0
    """Optimiser steps behind these weights."""
    complete: bool = False
    """Whether the training had ended."""
    figures: dict[str, float] = field(default_factory=dict)
    """Validation figures of these weights."""
    sha256: str = ""
    """Of model.safetensors."""
    format: int = FORMAT


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def from_dict(cls, values: dict[str, Any], where: str):
    """Build a config dataclass, nested ones included, from JSON. Raises UserError for a field that it lacks."""
    known = get_type_hints(cls)
    if unknown := set(values) - set(known):
        raise UserError(f"{where} has the unknown field {sorted(unknown)[0]!r}; it was written by another version")
    converted = {}
    for name, value in values.items():
        kind = known[name]
        if is_dataclass(kind):
            value = from_dict(kind, value, where)
        elif isinstance(value, list):
            value = tuple(value)
        converted[name] = value
    return cls(**converted)


def dump_tensors(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file and its metadata. Raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or truncated ({error}); restore it or train that stage again") from error


def save_stage(folder: Path, model: nn.Module, manifest: Manifest) -> str:
    """Write a stage's weights, then its manifest. Returns the SHA-256 of the weights."""
    content = dump_tensors(model.state_dict())
    manifest.sha256 = sha256(content)
    manifest.model = asdict(model.config)
    write_atomically(folder / "model.safetensors", content)
    write_json(folder / "config.json", asdict(manifest))
    return manifest.sha256


def read_manifest(folder: Path) -> Manifest:
    """Read a stage's manifest. Raises UserError, naming the command that trains the stage, if it is not there."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        name = folder.name if folder.name in STAGES else "clip"
        state = "has no trained" if folder.parent.is_dir() else "does not exist, so it has no"
        raise UserError(
            f"{folder.parent} {state} {name} stage; train it with: python train_{name}.py --out {folder.parent}"
        )
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise UserError(f"{path} has format {found}, but this version reads format {FORMAT}; train that stage again")
    try:
        manifest = Manifest(**values)
        for name, kind in (("model", dict), ("parents", dict), ("data", dict), ("sha256", str)):
            if not isinstance(getattr(manifest, name), kind):
                raise TypeError(f"{name} is no {kind.__name__}")
    except TypeError as error:
        raise UserError(f"{path} is not a stage's manifest ({error}); train that stage again") from error
    return manifest


def load_stage(folder: Path, model_class: type[M], config_class: type) -> tuple[M, Manifest]:
    """Open a stage for inference: its model in eval mode, frozen, on the CPU, and its manifest.

    Raises UserError if it is missing, damaged (the SHA-256 of the weights is checked) or of another version.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing; restore it or train that stage again")
    if (found := sha256(path.read_bytes())) != manifest.sha256:
        raise UserError(
            f"{path} is damaged: its SHA-256 is {found[:12]}.., but its config.json names {manifest.sha256[:12]}..; "
            "restore it or train that stage again"
        )
    try:
        model = model_class(from_dict(config_class, manifest.model, str(folder / "config.json")))
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / 'config.json'} does not describe a {manifest.stage} ({reason})") from error
    load_weights(model, load_tensors(path)[0], path)
    return model.eval().requires_grad_(False), manifest


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a model, naming the first key or shape that does not fit."""
    own = model.state_dict()
    for name in [*own, *tensors]:
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            shapes = [tuple(d[name].shape) if name in d else "nothing" for d in (tensors, own)]
            raise UserError(f"{path} holds {shapes[0]} for {name}, but the model expects {shapes[1]}")
    model.load_state_dict(tensors)


def check_lineage(manifests: dict[str, Manifest]) -> None:
    """Refuse a prior or a decoder that descends from another CLIP than the pipeline's. Raises UserError."""
    own = manifests["clip"].sha256
    for stage in ("prior", "decoder"):
        theirs = manifests[stage].parents.get("clip", "unknown")
        if theirs != own:
            raise UserError(
                f"the {stage} was trained on CLIP {theirs[:12]}.., but this pipeline holds {own[:12]}..; "
                f"retrain it with: python train_{stage}.py --out DIR, in a new DIR or without the old {stage} folder"
            )


def write_index(pipeline: Path) -> None:
    """Bring model_index.json, for programs, and README.md, for people, up to date with the complete stages."""
    stages = {}
    for stage in STAGES:
        if (pipeline / stage / "config.json").is_file() and (manifest := read_manifest(pipeline / stage)).complete:
            stages[stage] = {"sha256": manifest.sha256, "step": manifest.step, "figures": manifest.figures}
    index = {"format": FORMAT, "stages": stages}
    path = pipeline / "model_index.json"
    if not stages or (path.exists() and read_json(path) == index):
        return  # nor is a README touched that somebody wrote since
    write_json(path, index)
    rows = [
        f"| {stage} | {entry['step']} | `{entry['sha256'][:12]}` | "
        + ", ".join(f"{key} {value:.4g}" for key, value in entry["figures"].items())
        + " |"
        for stage, entry in stages.items()
    ]
    table = "\n".join(["| stage | steps | SHA-256 | validation figures |", "|---|---|---|---|", *rows])
    usage = f'    python sample.py --checkpoint {pipeline} "an image of a sneaker"'
    write_atomically(pipeline / "README.md", f"# unCLIP pipeline {pipeline.name}\n\n{table}\n\n{usage}\n")
