"""Read other projects' CLIPs into this project's module.

    Hugging Face's CLIPModel  config.json, model.safetensors, preprocessor_config.json, tokenizer
    open_clip                 open_clip_config.json, open_clip_model.safetensors, tokenizer
    OpenAI's state dict       NAME.safetensors, tokenizer

A tokenizer is tokenizer.json, or vocab.json with merges.txt. To add a format, add a row to `FORMATS`: a function that
returns our config and how captions are cleaned, and a column of the table in `weight_names.py`.
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
from unclip.store.parts import load_weights, without_weights

FORMATS = {
    "Hugging Face": (huggingface.read_config, HUGGING_FACE),
    "open_clip": (openclip.read_config, OPEN_CLIP),
    "OpenAI": (openclip.read_openai_config, OPEN_CLIP),
}
MALFORMED = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError)
"""Errors of reading a config whose values are of the wrong kind."""


def load_foreign_clip(path: Path) -> tuple[CLIP, Tokenizer | None, dict[str, Any]]:
    """Open the CLIP at a path, on the CPU.

    Returns the CLIP, its tokenizer if it has one, and its origin: the format and the SHA-256 of each file.
    Raises UserError if it is damaged, or if our module has no place for something in it.
    """
    file_format, files = _recognise_format(path)
    read_config, column = FORMATS[file_format]
    tensors, origin = read_weights(files)
    try:
        config, cleaning = read_config(files[0], tensors)
    except UserError:
        raise
    except MALFORMED as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"the config of {path} cannot be read as that of a {file_format} CLIP: {problem}") from error
    try:
        clip = without_weights(CLIP, config)
        Preprocess(config.vision.image_size, config.vision.channels, config.preprocess)
    except MALFORMED as error:
        raise UserError(f"no CLIP can be built as the config of {path} says: {reason(error)}") from error
    imported, unused = import_tensors(list(clip.state_dict()), tensors, column)
    if unused:
        raise UserError(
            f"{path} holds {unused[0]}, which this CLIP has no place for; it is not a plain {file_format} CLIP"
        )
    for name, tensor in imported.items():
        if not tensor.is_floating_point():
            raise UserError(f"{path} holds {name} as {tensor.dtype}; expected weights that are not quantised")
    load_weights(clip, imported, path)
    return clip, read_tokenizer(files[0].parent, config.text, cleaning), {"format": file_format, "sha256": origin}


def is_foreign_clip(folder: Path) -> bool:
    """Whether a folder holds the config of one of the formats."""
    return (folder / openclip.CONFIG).is_file() or huggingface.is_transformers_folder(folder)


def _recognise_format(path: Path) -> tuple[str, list[Path]]:
    """The format of a file or folder, and the files that hold its weights."""
    folder = path if path.is_dir() else path.parent
    open_clip_weights = folder / openclip.WEIGHTS
    is_open_clip = (folder / openclip.CONFIG).is_file()
    is_huggingface = huggingface.is_transformers_folder(folder)
    if is_open_clip and is_huggingface:  # both: go by the weights that are there, or given
        is_huggingface = path != open_clip_weights and (path.is_file() or not open_clip_weights.is_file())
    if is_huggingface:
        return "Hugging Face", weight_files(path)
    if is_open_clip:
        return "open_clip", weight_files(open_clip_weights if open_clip_weights.is_file() and path.is_dir() else path)
    return "OpenAI", weight_files(path)
