"""The parts of a pipeline on disk: a model's weights and its manifest, written as one and opened for inference."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unclip.errors import UserError, reason
from unclip.fields import from_dict
from unclip.registry import model_class
from unclip.store.checksums import abbreviated, sha256
from unclip.store.files import member, partial_file
from unclip.store.formats import FORMAT, upgrade_tensors
from unclip.store.manifest import Manifest, read_manifest, write_manifest
from unclip.store.own_files import MOVE, is_pending
from unclip.store.tensors import Gather, not_finite, parse_tensors, stream_tensors, unchanged

WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_part(folder: Path, model: nn.Module, manifest: Manifest, gather: Gather = unchanged) -> str:
    """Write a part's weights and its manifest. Returns the SHA-256 of the weights.

    Also puts that SHA-256 and the model's config into the manifest.
    """
    manifest.model = asdict(model.config)
    return save_weights(folder, model.state_dict(), manifest, gather)


def save_weights(folder: Path, tensors: dict[str, Tensor], manifest: Manifest, gather: Gather = unchanged) -> str:
    """Write weights and the manifest that describes them. Returns the SHA-256 of the weights.

    The weights have a pending name until the manifest, whose rename decides, names them: a kill at any moment leaves
    the old pair or the new one. Raises UserError for a model.safetensors that no manifest describes.
    """
    if (folder / "model.safetensors").exists() and not (folder / "config.json").exists():
        raise UserError(f"{folder / 'model.safetensors'} is in the way: no manifest describes it; {MOVE}")
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes | memoryview]:
        for chunk in stream_tensors(tensors, gather):
            digest.update(chunk)
            yield chunk

    with partial_file(folder / "model.safetensors", hashed()) as temporary:
        manifest.sha256 = digest.hexdigest()
        os.replace(temporary, _pending_weights(folder, manifest.sha256))
    write_manifest(folder, manifest)
    finish_saving(folder)
    return manifest.sha256


def save_changed_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest anew of weights that stay. Weights of an older format are written anew with it."""
    if manifest.format == FORMAT:
        write_manifest(folder, manifest)
    else:
        save_weights(folder, read_weights(folder, manifest), manifest)


def _pending_weights(folder: Path, digest: str) -> Path:
    """Where weights are before they are moved to model.safetensors."""
    return folder / f"model-{digest[:16]}.safetensors"


def finish_saving(folder: Path) -> None:
    """Move pending weights to their place if the manifest names them, and remove them if it does not.

    A file counts as pending weights if its name holds the beginning of its own SHA-256; others stay.
    """
    named = read_manifest(folder).sha256 if (folder / "config.json").is_file() else ""
    for path in folder.glob("model-*.safetensors"):
        if is_pending(path):
            if path == _pending_weights(folder, named):
                path.replace(folder / "model.safetensors")
            else:
                path.unlink()


def read_weights(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """A part's weights, under the names of the newest format.

    Raises UserError if they are missing, or are not the ones that the manifest names.
    """
    path = folder / "model.safetensors"
    digest = ""
    for place in (_pending_weights(folder, manifest.sha256), path):
        member(folder, place.name)
        if place.is_file():
            content = place.read_bytes()
            digest = sha256(content)
            if digest == manifest.sha256:
                tensors = parse_tensors(content, place)
                return upgrade_tensors(tensors, manifest.part, manifest.kind, manifest.format)
    if not digest:
        raise UserError(f"{path} is missing; restore it or train that part again")
    raise UserError(
        f"{path} is damaged: its SHA-256 is {abbreviated(digest)}, but its config.json names "
        f"{abbreviated(manifest.sha256)}; restore it or train that part again"
    )


def load_part(folder: Path, model_type: type[nn.Module] | None = None) -> tuple[nn.Module, Manifest]:
    """Open a part for inference: its model in eval mode, frozen, on the CPU, and its manifest.

    Args:
        model_type: the model's class; by default the one of the manifest's kind.

    Raises UserError if the part is missing, damaged (the SHA-256 of the weights is checked) or of another version.
    """
    folder = Path(folder)
    manifest, tensors = _read_manifest_and_weights(folder)
    model_type = model_type or model_class(manifest.part, manifest.kind)
    path = folder / "model.safetensors"
    try:
        config = from_dict(model_type.config_class, manifest.model, str(folder / "config.json"))
        with torch.device("meta"), WithoutInitialWeights():  # uses no memory: the config may ask for any size
            check_shapes(model_type(config), tensors, path)
        model = without_weights(model_type, config)
    except (TypeError, AttributeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / 'config.json'} does not describe a {manifest.part} ({reason(error)})") from error
    load_weights(model, tensors, path)
    return model.eval().requires_grad_(False), manifest


def without_weights(model_type: type[nn.Module], config: Any) -> nn.Module:
    """A model in float32 on the CPU, whatever PyTorch's defaults are. Its weights are about to be read."""
    with torch.device("cpu"), WithoutInitialWeights():
        return model_type(config).float()


class WithoutInitialWeights(TorchFunctionMode):
    """Leave the weights of models that are built in this context uninitialised: they are about to be read or counted.

    On the meta device initialising would also import torch's compiler, which takes longer than opening a pipeline.
    """

    initialisers = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.initialisers:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _read_manifest_and_weights(folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
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
    """Fill a model.

    Raises UserError, which names `path`, if the weights are of other shapes or types, or are not finite as the model's
    numbers.
    """
    check_shapes(model, tensors, path)
    model.load_state_dict(tensors)
    if name := not_finite(model.state_dict()):
        raise UserError(f"{path} holds numbers in {name} that are not finite; train that part again")


def check_shapes(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Raise UserError for the first name, shape or type of the weights that does not fit the model."""
    expected = model.state_dict()
    for name in [*expected, *tensors]:
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape:
            shapes = [tuple(side[name].shape) if name in side else "nothing" for side in (tensors, expected)]
            raise UserError(f"{path} holds {shapes[0]} for {name}, but the model expects {shapes[1]}")
        allowed = WEIGHT_TYPES if expected[name].is_floating_point() else (expected[name].dtype,)
        if tensors[name].dtype not in allowed:
            names = " or ".join(str(kind).removeprefix("torch.") for kind in allowed)
            raise UserError(f"{path} holds {name} as {tensors[name].dtype}, but the model expects {names}")
