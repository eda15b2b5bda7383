"""Pipelines on disk: one folder, one pipeline; every stage with its weights, its config, and where it comes from.

    NAME/model_index.json             which stages there are, with the SHA-256 of their weights; how to sample
    NAME/tokenizer.json
    NAME/captions.txt                 some of the captions that the prior was trained on, one per line
    NAME/{clip,prior,decoder}/config.json, model.safetensors

A stage's config.json is its manifest: the format's version, the model's kind and config, the SHA-256 of its weights,
that of its parents, and the fingerprint of its data. The table in unclip/registry.py says which stages there are.
Nothing is unpickled.
"""

import hashlib
import shlex
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unclip.errors import UserError, reason
from unclip.files import read_json, write_atomically, write_json
from unclip.registry import STAGES, default_kind, model_class
from unclip.settings import Sampling

FORMAT = 2


@dataclass
class Manifest:
    """A stage's config.json."""

    stage: str
    kind: str = ""
    """Which kind of the stage, of those in unclip/registry.py; of what is no stage of a pipeline none."""
    model: dict[str, Any] = field(default_factory=dict)
    """The model's config."""
    parents: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what this stage was trained on: CLIP's tokenizer; the prior's and the decoder's CLIP."""
    data: dict[str, Any] = field(default_factory=dict)
    """Name and fingerprint of the training data, and one of its captions."""
    training: dict[str, Any] = field(default_factory=dict)
    """The trainer's settings."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """How to draw from this stage, for the pipeline's model_index.json."""
    step: int = 0
    """Optimiser steps behind these weights."""
    complete: bool = False
    """Whether the training had ended."""
    figures: dict[str, float] = field(default_factory=dict)
    """Validation figures of these weights."""
    sha256: str = ""
    """Of model.safetensors."""
    format: int = FORMAT

    def __post_init__(self):
        if not self.kind and self.stage in STAGES:
            self.kind = default_kind(self.stage)


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
        for name in ("model", "parents", "data", "training", "sampling", "sha256", "kind"):
            kind = str if name in ("sha256", "kind") else dict
            if not isinstance(getattr(manifest, name), kind):
                raise TypeError(f"{name} is not a {kind.__name__}")
    except TypeError as error:
        raise UserError(f"{path} is not a stage's manifest ({error}); train that stage again") from error
    return manifest


def read_manifests(pipeline: Path) -> dict[str, Manifest]:
    """The manifests of a pipeline's stages, those of optional ones where they are there.

    Raises UserError if a stage is missing, or was trained on others than the pipeline's.
    """
    present = [
        name for name, stage in STAGES.items() if not stage.optional or (pipeline / name / "config.json").is_file()
    ]
    manifests = {name: read_manifest(pipeline / name) for name in present}
    check_lineage(manifests)
    return manifests


def load_stage(folder: Path, model: type[nn.Module] | None = None) -> tuple[nn.Module, Manifest]:
    """Open a stage for inference: its model in eval mode, frozen, on the CPU, and its manifest.

    The model's class is the one given, or that of the manifest's kind. Raises UserError if the stage is missing,
    damaged (the SHA-256 of the weights is checked) or of another version.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    model = model or model_class(manifest.stage, manifest.kind)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing; restore it or train that stage again")
    if (found := sha256(path.read_bytes())) != manifest.sha256:
        raise UserError(
            f"{path} is damaged: its SHA-256 is {found[:12]}.., but its config.json names {manifest.sha256[:12]}..; "
            "restore it or train that stage again"
        )
    try:
        built = model(from_dict(model.config_class, manifest.model, str(folder / "config.json")))
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / 'config.json'} does not describe a {manifest.stage} ({reason(error)})") from error
    load_weights(built, load_tensors(path)[0], path)
    return built.eval().requires_grad_(False), manifest


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a model, naming the first key or shape that does not fit."""
    own = model.state_dict()
    for name in [*own, *tensors]:
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            shapes = [tuple(d[name].shape) if name in d else "nothing" for d in (tensors, own)]
            raise UserError(f"{path} holds {shapes[0]} for {name}, but the model expects {shapes[1]}")
    model.load_state_dict(tensors)


def check_lineage(manifests: dict[str, Manifest]) -> None:
    """Refuse a stage that was trained on others than the pipeline's. Raises UserError."""
    for stage, manifest in manifests.items():
        for parent in STAGES[stage].parents:
            theirs, own = manifest.parents.get(parent, "unknown"), manifests[parent].sha256
            if theirs != own:
                raise UserError(
                    f"the {stage} was trained on the {parent} {theirs[:12]}.., but this pipeline holds "
                    f"{own[:12]}..; retrain it with: python train_{stage}.py --out DIR, in a new DIR or without the "
                    f"old {stage} folder"
                )


def is_complete(folder: Path) -> bool:
    """Whether a stage is there whose training has ended."""
    return (folder / "config.json").is_file() and read_manifest(folder).complete


def newest_pipeline(folder: Path) -> Path:
    """The newest pipeline in a folder of them whose stages are all complete, else the committed one.

    Raises UserError if there is neither.
    """
    committed = folder / "fashion-mnist"
    times = {path: finished(path) for path in folder.glob("*/") if path != committed}
    newest = max(times, key=times.get, default=committed)
    newest = newest if times.get(newest) else committed
    if not newest.is_dir():
        raise UserError(
            f"no trained pipeline under {folder.name}/; train one with: make demo, or name one: --checkpoint DIR"
        )
    return newest


def finished(pipeline: Path) -> float:
    """When the last stage of a pipeline was finished, or 0."""
    try:
        manifests = read_manifests(pipeline)
    except UserError:
        return 0.0
    complete = all(manifest.complete for manifest in manifests.values())
    return max((pipeline / stage / "config.json").stat().st_mtime for stage in manifests) if complete else 0.0


def write_index(pipeline: Path) -> None:
    """Bring model_index.json, for programs, and README.md, for people, up to date with the complete stages."""
    manifests = {stage: read_manifest(pipeline / stage) for stage in STAGES if is_complete(pipeline / stage)}
    index = {
        "format": FORMAT,
        "stages": {
            stage: {"kind": m.kind, "sha256": m.sha256, "step": m.step, "figures": m.figures}
            for stage, m in manifests.items()
        },
        "sampling": {stage: m.sampling for stage, m in manifests.items() if m.sampling},
    }
    path = pipeline / "model_index.json"
    if not manifests or (path.exists() and read_json(path) == index):
        return  # nor is a README touched that somebody wrote since
    write_json(path, index)
    write_atomically(pipeline / "README.md", _readme(pipeline, manifests))


def _readme(pipeline: Path, manifests: dict[str, Manifest]) -> str:
    table = ["| stage | steps | SHA-256 | validation figures |", "|---|---|---|---|"]
    for stage, m in manifests.items():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in m.figures.items())
        table.append(f"| {stage} | {m.step} | `{m.sha256[:12]}` | {figures} |")
    example = next((m.data["example"] for m in manifests.values() if "example" in m.data), "a caption")
    usage = f"    python sample.py --checkpoint {pipeline} {shlex.quote(example)}"
    return "\n".join([f"# unCLIP pipeline {pipeline.name}", "", *table, "", usage, ""])


def read_sampling(pipeline: Path) -> Sampling:
    """The pipeline's own settings of sampling; what model_index.json does not name is the library's.

    Raises UserError for settings that are unknown or out of range.
    """
    path = pipeline / "model_index.json"
    index = read_json(path) if path.is_file() else {}
    own = index.get("sampling", {}) if isinstance(index, dict) else {}
    if not isinstance(own, dict) or not all(isinstance(part, dict) for part in own.values()):
        raise UserError(f'{path} holds no settings of sampling under "sampling"; restore it, or delete the entry')
    try:
        return from_dict(Sampling, own, str(path))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds settings of sampling that cannot be used ({reason(error)})") from error
