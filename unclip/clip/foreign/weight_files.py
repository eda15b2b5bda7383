"""Read the files of other projects' CLIPs. Weights come from safetensors alone: nothing is unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from unclip.errors import UserError
from unclip.store.files import check_fetched, member

HUB_FILES = ("*.json", "*.txt", "*.safetensors")
"""Files of a CLIP that are downloaded from the Hugging Face Hub."""
CONVERSIONS = {
    ".bin": "torch.load({old!r}, weights_only=True)",
    **dict.fromkeys((".pth", ".ckpt"), "torch.load({old!r}, weights_only=True)"),
    ".pt": "torch.jit.load({old!r}, 'cpu').state_dict()",  # OpenAI's are TorchScript
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError if the file holds none."""
    try:
        values = json.loads(check_fetched(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); restore it or fetch it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; restore it or fetch it again")
    return values


def read_settings(path: Path, values: dict[str, Any], names: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Translate their settings to ours. `names` maps each of our names to their name and default.

    A size may be a list of height and width. Raises UserError, naming the file, if the two differ.
    """
    settings = {ours: values.get(theirs, default) for ours, (theirs, default) in names.items()}
    for ours in ("image_size", "patch_size"):
        if isinstance(sides := settings.get(ours), list):
            if len(set(sides)) != 1:
                raise UserError(f"{path}: {names[ours][0]} is {sides}; only squares can be read")
            settings[ours] = sides[0]
    return settings


def weight_files(path: Path) -> list[Path]:
    """The safetensors file at a path, or in a folder, or its shards.

    Raises UserError if there is none, or if a folder holds several that are no shards.
    """
    if path.is_file():
        return [path if path.suffix == ".safetensors" else _refuse_pickle(path)]
    index = path / "model.safetensors.index.json"
    whole = path / "model.safetensors"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not shards or not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise UserError(f"{index} has no weight_map; fetch it again")
        files = [member(path, name) for name in sorted(set(shards.values()))]
    else:
        files = [whole] if whole.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        pickled = [file for file in sorted(path.iterdir()) if file.suffix in CONVERSIONS]
        if pickled:
            _refuse_pickle(next((file for file in pickled if "model" in file.name), pickled[0]))
        raise UserError(f"{path} holds no CLIP: neither a pipeline's clip folder nor a .safetensors file of weights")
    if len(files) > 1 and not index.is_file():
        raise UserError(f"{path} holds {len(files)} .safetensors files; give the path of the one that is meant")
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]} is missing, but {index.name} names it; fetch it again")
    return files


def _refuse_pickle(path: Path) -> Path:
    if path.suffix not in CONVERSIONS:
        raise UserError(f"{path} is not a file of weights; expected .safetensors, or the folder that they lie in")
    load = CONVERSIONS[path.suffix].format(old=str(path))
    new = str(path.with_suffix(".safetensors"))
    raise UserError(
        f"{path} could run code when it is read, so only .safetensors files are; if you trust it, convert it with: "
        f'python -c "import torch, safetensors.torch as s; '
        f's.save_file({{k: v.contiguous().clone() for k, v in {load}.items()}}, {new!r})"'
    )


def read_weights(files: list[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read safetensors files. Returns their tensors in float32, and the SHA-256 of each file by its name.

    Raises UserError if a file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    origin = {}
    for path in files:
        try:
            tensors |= safetensors.torch.load_file(check_fetched(path))
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or truncated ({error}); fetch it again") from error
        with open(path, "rb") as file:
            origin[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float()
    return tensors, origin
