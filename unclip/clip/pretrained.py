"""Open a CLIP with what belongs to it, its tokenizer and its preprocessing: one of ours, or a pretrained one.

    a folder of ours          checkpoints/NAME, or the `clip` folder in it
    Hugging Face's CLIPModel  config.json, model.safetensors, preprocessor_config.json, tokenizer
    open_clip                 open_clip_config.json, open_clip_model.safetensors, tokenizer
    OpenAI's state dict       NAME.safetensors, tokenizer

A tokenizer is tokenizer.json, or vocab.json with merges.txt. Weights are read from safetensors alone.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from unclip.checkpoint import (
    Manifest,
    dump_tensors,
    from_dict,
    load_stage,
    load_tensors,
    load_weights,
    read_manifest,
    save_stage,
    sha256,
)
from unclip.clip import huggingface, openclip
from unclip.clip.model import CLIP, CLIPConfig
from unclip.clip.preprocess import Preprocess
from unclip.clip.tokenizer import Tokenizer, from_vocabulary
from unclip.errors import UserError, reason
from unclip.files import read_json, write_atomically

OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HUB_FILES = ("*.json", "*.txt", "*.safetensors")


class Opened(NamedTuple):
    clip: CLIP
    tokenizer: Tokenizer | None
    manifest: Manifest


def load_clip(path: str | Path) -> tuple[CLIP, Tokenizer | None, Preprocess]:
    """Open the CLIP at a path for inference: eval mode, frozen, on the CPU.

    The tokenizer is None where weights come without one; a pipeline takes no such CLIP.
    Raises UserError if there is none, if it is damaged, or if our module has no place for something in it.
    """
    clip, tokenizer, _ = open_clip_at(Path(path))
    vision = clip.config.vision
    return clip, tokenizer, Preprocess(vision.image_size, vision.channels, clip.config.preprocess)


def open_clip_at(path: Path) -> Opened:
    """The CLIP of any known format, and the manifest that it has, or would have, in a pipeline."""
    if (folder := own_folder(path)) is not None:
        return _open_own(folder)
    folder = path if path.is_dir() else path.parent
    kind, files = _recognise(path, folder)
    weights, origin = _read_weights(files)
    try:
        if kind == "Hugging Face":
            config, import_tensors = huggingface.read_config(folder), huggingface.import_tensors
        elif kind == "open_clip":
            config, import_tensors = openclip.read_config(folder / OPEN_CLIP_CONFIG), openclip.import_tensors
        else:
            config, import_tensors = openclip.openai_config(weights, path), openclip.import_tensors
        clip = CLIP(config)
        Preprocess(config.vision.image_size, config.vision.channels, config.preprocess)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"the config of {path} cannot be read as a {kind} CLIP's ({reason(error)})") from error
    tensors = import_tensors(list(clip.state_dict()), weights)
    for name in weights:  # what is left over
        raise UserError(f"{path} holds {name}, which this CLIP has no place for; it is no plain {kind} CLIP")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{path} holds {name} as {tensor.dtype}; quantised weights are not known here")
    load_weights(clip, tensors, path)
    tokenizer = _tokenizer(folder, config)
    manifest = Manifest("clip", training={"pretrained": str(path), "format": kind, "sha256": origin}, complete=True)
    if tokenizer:
        manifest.parents = {"tokenizer": sha256(tokenizer.to_json().encode())}
    return Opened(clip.eval().requires_grad_(False), tokenizer, manifest)


def own_folder(path: Path) -> Path | None:
    """The folder of a CLIP in our own format, in a pipeline or by itself; None for what is of another format."""
    if (path / "clip").is_dir() or not path.exists():
        return path / "clip"
    config = path / "config.json"
    others = (path / OPEN_CLIP_CONFIG).is_file() or huggingface.matches(path)
    return None if path.is_file() or others or not config.is_file() else path


def _open_own(folder: Path) -> Opened:
    clip, manifest = load_stage(folder, CLIP)
    path = folder.parent / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    found, expected = sha256(path.read_bytes()), manifest.parents.get("tokenizer", "unknown")
    if found != expected:
        raise UserError(
            f"{path} has the SHA-256 {found[:12]}.., but the CLIP beside it was trained with {expected[:12]}..; "
            "restore the tokenizer that belongs to it"
        )
    _check_tokenizer(tokenizer, clip.config, folder.parent)
    return Opened(clip, tokenizer, manifest)


def _recognise(path: Path, folder: Path) -> tuple[str, list[Path]]:
    """The format of what is at a path, and the files that hold its weights."""
    own = folder / OPEN_CLIP_WEIGHTS
    is_open_clip, is_huggingface = (folder / OPEN_CLIP_CONFIG).is_file(), huggingface.matches(folder)
    if is_open_clip and is_huggingface:  # repositories that serve both: by the weights that are there, or are named
        is_huggingface = path != own and (path.is_file() or not own.is_file())
    if is_huggingface:
        return "Hugging Face", _weight_files(path)
    if is_open_clip:
        return "open_clip", _weight_files(own if own.is_file() and path.is_dir() else path)
    return "OpenAI", _weight_files(path)


def _weight_files(path: Path) -> list[Path]:
    """A safetensors file, or the one in a folder, or its shards. Raises UserError if there is none, or a choice."""
    if path.is_file():
        return [path]
    index, whole = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not shards:
            raise UserError(f"{index} has no weight_map; fetch it again")
        files = [path / name for name in sorted(set(shards.values()))]
    else:
        files = [whole] if whole.is_file() else sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            pickled = next((f.name for pattern in ("*.bin", "*.pt") for f in path.glob(pattern)), None)
            found = f"{pickled}, which could run code when it is read" if pickled else f"{len(files)} safetensors files"
            raise UserError(f"{path} holds {found}; expected one .safetensors file: convert the weights first")
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]} is missing")
    return files


def _read_weights(files: list[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of safetensors files, in float32; and the files' SHA-256."""
    origin = {}
    for file in files:
        with open(file, "rb") as content:
            origin[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    tensors = {key: tensor for file in files for key, tensor in load_tensors(file)[0].items()}
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}, origin


def _tokenizer(folder: Path, config: CLIPConfig) -> Tokenizer | None:
    """The tokenizer in a folder, if there is one; it must go with the text tower."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = from_vocabulary(folder / "vocab.json", folder / "merges.txt")
    else:
        return None
    for settings in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        if settings.is_file():
            tokenizer.pad_with(read_json(settings).get("pad_token"))
    _check_tokenizer(tokenizer, config, folder)
    return tokenizer


def _check_tokenizer(tokenizer: Tokenizer, config: CLIPConfig, folder: Path) -> None:
    """Raise UserError for a tokenizer that does not go with the text tower."""
    if tokenizer.vocab_size > config.text.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, but the text tower {config.text.vocab_size}"
        )
    if config.text.pooling == "eos" and tokenizer.end_id != config.text.eos_id:
        raise UserError(
            f"the tokenizer in {folder} ends a caption with token {tokenizer.end_id}, but the text tower reads its "
            f"embedding at token {config.text.eos_id}"
        )


def adopt(source: str, pipeline: Path, revision: str | None = None) -> None:
    """Copy the CLIP at a path, or of that name on the Hub, into a pipeline in our format, where it is not there yet.

    Raises UserError if the pipeline holds another CLIP, or if this one comes without a tokenizer.
    """
    path = Path(source)
    if not path.exists():
        path = download(source, revision)
    clip, tokenizer, manifest = open_clip_at(path)
    if tokenizer is None:
        raise UserError(f"{source} holds no tokenizer; put tokenizer.json, or vocab.json with merges.txt, beside it")
    ours = sha256(dump_tensors(clip.state_dict()))
    if (pipeline / "clip" / "config.json").is_file():
        theirs = read_manifest(pipeline / "clip")
        same = theirs.parents.get("tokenizer") == manifest.parents["tokenizer"]
        if theirs.sha256 != ours or not same or from_dict(CLIPConfig, theirs.model, str(pipeline)) != clip.config:
            raise UserError(
                f"{pipeline} already holds a CLIP, {theirs.sha256[:12]}.., and it is not that of {source}, "
                f"{ours[:12]}..; choose another --out"
            )
        return
    if "pretrained" in manifest.training:
        manifest.training |= {"pretrained": source, "revision": revision}
    write_atomically(pipeline / "tokenizer.json", tokenizer.to_json())
    save_stage(pipeline / "clip", clip, manifest)


def download(name: str, revision: str | None) -> Path:
    """The folder of a model of the Hugging Face Hub, from the local cache or the network."""
    from huggingface_hub import snapshot_download  # a second to import, and only wanted here

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # it raises what its network library raises
        raise UserError(f"there is no folder or file {name}, and the Hub does not give it ({reason(error)})") from error
