"""Pipelines on disk: one folder, one pipeline; every stage with its weights, its config, and where it comes from.

    NAME/model_index.json             which stages are complete, with the SHA-256 of every file; how to sample
    NAME/tokenizer.json
    NAME/captions.txt                 some of the captions that the prior was trained on, one per line
    NAME/{clip,prior,decoder}/config.json, model.safetensors

A stage's config.json is its manifest: the format's version, the model's kind and config, the SHA-256 of its weights,
that of its parents, the fingerprint of its data, and a checksum of all that. The table in unclip/registry.py says which
stages there are. Whatever is read is verified, and nothing is unpickled.
"""

import hashlib
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unclip.errors import UserError, reason
from unclip.fields import from_dict
from unclip.registry import PARTS, default_kind, model_class
from unclip.store.files import file_sha256, read_json, read_record, write_atomically, write_record
from unclip.store.index import read_index

FORMAT = 3


@dataclass
class Manifest:
    """A stage's config.json."""

    stage: str
    kind: str = ""
    """Which kind of the stage, of those in unclip/registry.py; "" for what is not a stage of a pipeline."""
    model: dict[str, Any] = field(default_factory=dict)
    """The model's config."""
    parents: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what this stage was trained on: CLIP's tokenizer; the prior's and the decoder's CLIP."""
    data: dict[str, Any] = field(default_factory=dict)
    """Name and fingerprint of the training data, and one of its captions."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where that data is from, and how it is read; what comes after this stage takes it from here."""
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
        if self.kind == "" and self.stage in PARTS:
            self.kind = default_kind(self.stage)


EMPTY = Manifest("")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def dump_tensors(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)


def parse_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file's bytes. Raises UserError if it is damaged."""
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or truncated ({error}); restore it or train that stage again") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file and its metadata. Raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or truncated ({error}); restore it or train that stage again") from error


def save_part(folder: Path, model: nn.Module, manifest: Manifest) -> str:
    """Write a stage's weights and its manifest. Returns the SHA-256 of the weights.

    The weights wait under a name of their own until the manifest, whose rename decides, names them: a kill at any
    moment leaves the old pair or the new one.
    """
    content = dump_tensors(model.state_dict())
    manifest.sha256 = sha256(content)
    manifest.model = asdict(model.config)
    write_atomically(waiting(folder, manifest.sha256), content)
    write_record(folder / "config.json", asdict(manifest))
    settle(folder)
    return manifest.sha256


def waiting(folder: Path, digest: str) -> Path:
    """The name of weights between their manifest and their own place."""
    return folder / f"model-{digest[:16]}.safetensors"


def settle(folder: Path) -> None:
    """Bring weights that the manifest names to their place, and remove those that it does not."""
    named = read_manifest(folder).sha256 if (folder / "config.json").is_file() else ""
    for path in folder.glob("model-*.safetensors"):
        if path == waiting(folder, named):
            path.replace(folder / "model.safetensors")
        else:
            path.unlink()


def read_weights(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """A stage's weights. Raises UserError if they are missing, or not those that the manifest names."""
    path, found = folder / "model.safetensors", ""
    for one in (waiting(folder, manifest.sha256), path):
        if one.is_file():
            content = one.read_bytes()
            if (found := sha256(content)) == manifest.sha256:
                return parse_tensors(content, one)
    if not found:
        raise UserError(f"{path} is missing; restore it or train that stage again")
    raise UserError(
        f"{path} is damaged: its SHA-256 is {found[:12]}.., but its config.json names {manifest.sha256[:12]}..; "
        "restore it or train that stage again"
    )


def read_manifest(folder: Path) -> Manifest:
    """Read a stage's manifest. Raises UserError, naming the command that trains the stage, if it is not there."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        name = folder.name if folder.name in PARTS else "clip"
        state = "has no trained" if folder.parent.is_dir() else "does not exist, so it has no"
        raise UserError(
            f"{folder.parent} {state} {name} stage; train it with: python train_{name}.py --out {folder.parent}"
        )
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise UserError(f"{path} has format {found}, but this version reads format {FORMAT}; train that stage again")
    values = read_record(path)
    try:
        manifest = Manifest(**values)
        for item in fields(Manifest):
            kind, value = type(getattr(EMPTY, item.name)), getattr(manifest, item.name)
            if type(value) is not kind:
                raise TypeError(f"{item.name} is not of type {kind.__name__}")
        if not all(isinstance(parent, str) for parent in manifest.parents.values()):
            raise TypeError("its parents are not named by strings")
        if manifest.stage in PARTS and folder.name in PARTS and manifest.stage != folder.name:
            raise TypeError(f"it is that of a {manifest.stage}")
    except TypeError as error:
        raise UserError(f"{path} is not a stage's manifest ({error}); train that stage again") from error
    return manifest


def read_manifests(pipeline: Path) -> dict[str, Manifest]:
    """The manifests of a pipeline's stages, those of optional ones where they are there.

    Raises UserError if a stage is missing, is another than its folder says, or was trained on others than the
    pipeline's.
    """
    present = [
        name for name, stage in PARTS.items() if not stage.optional or (pipeline / name / "config.json").is_file()
    ]
    manifests = {name: read_manifest(pipeline / name) for name in present}
    for name, manifest in manifests.items():
        if manifest.stage != name:
            raise UserError(f"{pipeline / name} holds a {manifest.stage}, not a {name}; restore it or train it again")
    check_lineage(manifests)
    return manifests


def load_part(folder: Path, model: type[nn.Module] | None = None) -> tuple[nn.Module, Manifest]:
    """Open a stage for inference: its model in eval mode, frozen, on the CPU, and its manifest.

    The model's class is the one given, or that of the manifest's kind. Raises UserError if the stage is missing,
    damaged (the SHA-256 of the weights is checked) or of another version.
    """
    folder = Path(folder)
    manifest, tensors = _read_pair(folder)
    manifest.model, tensors = translate_format_3(manifest.stage, manifest.model, tensors)
    model = model or model_class(manifest.stage, manifest.kind)
    path = folder / "model.safetensors"
    try:
        config = from_dict(model.config_class, manifest.model, str(folder / "config.json"))
        with torch.device("meta"), WithoutDraws():  # no memory: a config may ask for any size, the file has its own
            check_shapes(model(config), tensors, path)
        with WithoutDraws():
            built = model(config)
    except (TypeError, AttributeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / 'config.json'} does not describe a {manifest.stage} ({reason(error)})") from error
    load_weights(built, tensors, path)
    return built.eval().requires_grad_(False), manifest


def translate_format_3(part: str, config: dict, tensors: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Model config and weights of format 3 as those of today."""
    if part not in ("prior", "decoder") or "network" in config:
        return config, tensors
    diffusion = {key: config[key] for key in ("timesteps", "schedule", "prediction") if key in config}
    rest = {key: value for key, value in config.items() if key not in diffusion}
    if part == "prior":
        diffusion["prediction"] = "x0"
        num_classes = rest.pop("rivals", 0)
        config = {"network": rest, "diffusion": diffusion, "num_classes": num_classes}
        renamed = {"choice.rivals": "reranker.class_embeddings", "choice.scale": "reranker.logit_scale"}
        tensors = {
            renamed.get(name, name if name.startswith("scaler.") else f"network.{name}"): tensor
            for name, tensor in tensors.items()
        }
        return config, tensors
    names = ("space_to_depth", "width", "multipliers", "blocks", "attention_levels", "head_dim", "condition_width")
    unet = {key: rest.pop(key) for key in names if key in rest}
    config = {"network": {"unet": unet, **rest}, "diffusion": diffusion}
    return config, {f"network.{name}": tensor for name, tensor in tensors.items()}


class WithoutDraws(TorchFunctionMode):
    """Models that are built within draw no initial weights: they are about to be read.

    On the meta device a draw would also import torch's compiler, which takes longer than opening a pipeline itself.
    """

    draws = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.draws:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _read_pair(folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """A manifest and its weights, also while a training writes new ones."""
    for attempt in range(3):
        manifest = read_manifest(folder)
        try:
            return manifest, read_weights(folder, manifest)
        except (UserError, FileNotFoundError):
            if attempt == 2 or read_manifest(folder).sha256 == manifest.sha256:
                raise
    raise AssertionError


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a model. Raises UserError if it is of other shapes."""
    check_shapes(model, tensors, path)
    model.load_state_dict(tensors)


def check_shapes(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Raise UserError for the first key or shape that does not fit a model."""
    own = model.state_dict()
    for name in [*own, *tensors]:
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            shapes = [tuple(d[name].shape) if name in d else "nothing" for d in (tensors, own)]
            raise UserError(f"{path} holds {shapes[0]} for {name}, but the model expects {shapes[1]}")


def check_lineage(manifests: dict[str, Manifest]) -> None:
    """Refuse a stage that was trained on others than the pipeline's. Raises UserError."""
    for stage, manifest in manifests.items():
        for parent in PARTS[stage].parents:
            theirs = manifest.parents.get(parent, "unknown")
            own = manifests[parent].sha256 if parent in manifests else ""
            if theirs != own:
                held = f"{own[:12]}.." if own else "none"
                raise UserError(
                    f"the {stage} was trained on the {parent} {theirs[:12]}.., but this pipeline holds {held}; retrain "
                    f"it with: python train_{stage}.py --out DIR, in a new DIR or without the old {stage} folder"
                )


def is_complete(folder: Path) -> bool:
    """Whether a stage is there whose training has ended."""
    return (folder / "config.json").is_file() and read_manifest(folder).complete


def write_index(pipeline: Path, leave_out: str = "") -> None:
    """Bring model_index.json, for programs, and README.md, for people, up to date with the complete stages.

    A stage that is about to be written is left out: the index names only files that stay as they are.
    """
    manifests = {
        stage: read_manifest(pipeline / stage)
        for stage in PARTS
        if stage != leave_out and is_complete(pipeline / stage)
    }
    files = {f"{stage}/config.json": file_sha256(pipeline / stage / "config.json") for stage in manifests}
    files |= {f"{stage}/model.safetensors": manifest.sha256 for stage, manifest in manifests.items()}
    if "clip" in manifests and (pipeline / "tokenizer.json").is_file():
        files["tokenizer.json"] = file_sha256(pipeline / "tokenizer.json")
    index = {
        "format": FORMAT,
        "files": files,
        "stages": {
            stage: {"kind": m.kind, "sha256": m.sha256, "step": m.step, "figures": m.figures}
            for stage, m in manifests.items()
        },
        "sampling": {stage: m.sampling for stage, m in manifests.items() if m.sampling},
    }
    path, readme = pipeline / "model_index.json", pipeline / "README.md"
    if not (manifests or path.exists()) or (readme.exists() and path.exists() and _same_record(path, index)):
        return  # nor is a README touched that somebody wrote since
    write_atomically(readme, _readme(pipeline, manifests))
    write_record(path, index)


def _same_record(path: Path, content: dict[str, Any]) -> bool:
    try:
        return read_record(path) == content
    except UserError:
        return False


def check_files(pipeline: Path, manifests: dict[str, Manifest]) -> None:
    """Raise UserError for a file that is not the one that model_index.json names.

    Weights are hashed when they are read: here it suffices that the manifest expects the same.
    """
    for name, expected in read_index(pipeline).get("files", {}).items():
        stage = name.split("/")[0]
        if name.endswith("/model.safetensors"):
            found = manifests[stage].sha256 if stage in manifests else expected
        else:
            found = file_sha256(pipeline / name) if (pipeline / name).is_file() else "none"
        if found != expected:
            raise UserError(
                f"{pipeline / name} is not the file that model_index.json names (SHA-256 {found[:12]}.., not "
                f"{expected[:12]}..); restore it, or give the command again that trains the {stage}"
            )


def training_captions(folder: Path) -> list[str]:
    """The captions in a pipeline's captions.txt; without it the example that its manifests name."""
    path = folder / "captions.txt"
    if path.is_file():
        return path.read_text(encoding="utf-8").splitlines()
    named = [m.data["example"] for m in read_manifests(folder).values() if "example" in m.data]
    return named[:1] or ["a picture"]


def _readme(pipeline: Path, manifests: dict[str, Manifest]) -> str:
    table = ["| stage | steps | SHA-256 | validation figures |", "|---|---|---|---|"]
    for stage, m in manifests.items():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in m.figures.items())
        table.append(f"| {stage} | {m.step} | `{m.sha256[:12]}` | {figures} |")
    example = next((m.data["example"] for m in manifests.values() if "example" in m.data), "a caption")
    usage = f"    python sample.py --checkpoint {pipeline} {shlex.quote(example)}"
    return "\n".join([f"# unCLIP pipeline {pipeline.name}", "", *table, "", usage, ""])
