"""Other projects' CLIPs, read into this project's own module.

    Hugging Face's CLIPModel  config.json, model.safetensors, preprocessor_config.json, tokenizer
    open_clip                 open_clip_config.json, open_clip_model.safetensors, tokenizer
    OpenAI's state dict       NAME.safetensors, tokenizer

A tokenizer is tokenizer.json, or vocab.json with merges.txt. A format is a row of `FORMATS`: a function that reads its
config, and gives ours and how captions are cleaned; and a column of the table of names.
"""

from pathlib import Path
from typing import Any

from unclip.clip.foreign import huggingface, openclip
from unclip.clip.foreign.tokenizer_files import read_tokenizer
from unclip.clip.foreign.weight_files import read_weights, weight_files
from unclip.clip.foreign.weight_names import HUGGING_FACE, OPEN_CLIP, import_tensors
from unclip.clip.model import CLIP
from unclip.clip.preprocess import Preprocess
from unclip.clip.tokenizer import Tokenizer
from unclip.errors import UserError, reason
from unclip.store.parts import load_weights

FORMATS = {
    "Hugging Face": (huggingface.read_config, HUGGING_FACE),
    "open_clip": (openclip.read_config, OPEN_CLIP),
    "OpenAI": (openclip.read_openai_config, OPEN_CLIP),
}
MALFORMED = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError)
"""What reading a config raises whose values are of the wrong kind."""


def load(path: Path) -> tuple[CLIP, Tokenizer | None, dict[str, Any]]:
    """The CLIP at a path, on the CPU; its tokenizer, if it has one; and its origin: format and SHA-256 of its files.

    Raises UserError if it is damaged, or if our module has no place for something in it.
    """
    kind, files = _recognise(path)
    read_config, column = FORMATS[kind]
    tensors, origin = read_weights(files)
    try:
        config, cleaning = read_config(files[0], tensors)
    except UserError:
        raise
    except MALFORMED as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"the config of {path} cannot be read as that of a {kind} CLIP: {why}") from error
    try:
        clip = CLIP(config)
        Preprocess(config.vision.image_size, config.vision.channels, config.preprocess)
    except MALFORMED as error:
        raise UserError(f"no CLIP can be built as the config of {path} says: {reason(error)}") from error
    found, left = import_tensors(list(clip.state_dict()), tensors, column)
    if left:
        raise UserError(f"{path} holds {left[0]}, which this CLIP has no place for; it is not a plain {kind} CLIP")
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            raise UserError(f"{path} holds {name} as {tensor.dtype}; expected weights that are not quantised")
    load_weights(clip, found, path)
    return clip, read_tokenizer(files[0].parent, config.text, cleaning), {"format": kind, "sha256": origin}


def is_known(folder: Path) -> bool:
    """Whether there is a config of one of the formats in a folder."""
    return (folder / openclip.CONFIG).is_file() or huggingface.matches(folder)


def _recognise(path: Path) -> tuple[str, list[Path]]:
    """The format of what is at a path, and the files that hold its weights."""
    folder = path if path.is_dir() else path.parent
    own = folder / openclip.WEIGHTS
    is_open_clip, is_huggingface = (folder / openclip.CONFIG).is_file(), huggingface.matches(folder)
    if is_open_clip and is_huggingface:  # repositories that serve both: by the weights that are there, or are named
        is_huggingface = path != own and (path.is_file() or not own.is_file())
    if is_huggingface:
        return "Hugging Face", weight_files(path)
    if is_open_clip:
        return "open_clip", weight_files(own if own.is_file() and path.is_dir() else path)
    return "OpenAI", weight_files(path)
