"""Read and write Hugging Face's CLIPModel folders: config.json, model.safetensors, preprocessor_config.json, tokenizer.

We add `unclip.json` for settings that their files have no place for. transformers ignores it.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unclip.clip.foreign.tokenizer_files import export_tokenizer
from unclip.clip.foreign.weight_files import read_json, read_settings
from unclip.clip.foreign.weight_names import HUGGING_FACE, export_tensors, their_keys
from unclip.clip.model import CLIPConfig
from unclip.clip.preprocess import LUMINANCE
from unclip.clip.preprocess_config import OPENAI_MEAN, OPENAI_STD, PreprocessConfig
from unclip.clip.text import TextConfig
from unclip.clip.tokenizer import Tokenizer
from unclip.clip.vision import VisionConfig
from unclip.errors import UserError

CONFIG = "config.json"
OURS = "unclip.json"
PATCHES = their_keys("vision.patch.weight", HUGGING_FACE)[0]
# Our name of a setting -> their name, and their default, which config.json leaves out (see CLIPTextConfig).
TEXT = {
    "width": ("hidden_size", 512), "mlp_width": ("intermediate_size", 2048), "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 8), "activation": ("hidden_act", "quick_gelu"),
    "norm_eps": ("layer_norm_eps", 1e-5), "vocab_size": ("vocab_size", 49408),
    "context": ("max_position_embeddings", 77), "eos_id": ("eos_token_id", 49407),
}  # fmt: skip
VISION = {
    "width": ("hidden_size", 768), "mlp_width": ("intermediate_size", 3072), "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12), "activation": ("hidden_act", "quick_gelu"),
    "norm_eps": ("layer_norm_eps", 1e-5), "image_size": ("image_size", 224), "channels": ("num_channels", 3),
    "patch_size": ("patch_size", 32),
}  # fmt: skip
ACTIVATIONS = ("gelu", "quick_gelu")
RESAMPLE: dict[int, Any] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for interpolations."""
LEGACY_EOS = 2
"""eos_token_id of configs written before transformers 4.31, whatever the tokenizer's id; it means the highest id."""


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder has a config.json in the format of transformers."""
    return (folder / CONFIG).is_file() and "model_type" in read_json(folder / CONFIG)


def read_config(weights: Path, tensors: dict[str, Tensor]) -> tuple[CLIPConfig, str]:
    """Our config for the CLIPModel with these weights, and how its captions are cleaned.

    Raises UserError, naming the file, for a setting that our module has no place for.
    """
    folder = weights.parent
    path = folder / CONFIG
    values = read_json(path)
    if values["model_type"] != "clip":
        raise UserError(f"{path} describes a {values['model_type']!r} model; only CLIP models ('clip') can be read")
    text = _read_tower(path, values, "text_config", TEXT)
    vision = _read_tower(path, values, "vision_config", VISION)
    if not isinstance(text["eos_id"], int):
        raise UserError(f"{path}: eos_token_id is {text['eos_id']}; expected one number")
    preprocess = _read_preprocess(folder, vision["image_size"], vision["channels"])
    ours = read_json(folder / OURS) if (folder / OURS).is_file() else {}
    if ours.get("grey"):
        vision["channels"] = 1
        tensors[PATCHES] = import_patches(tensors[PATCHES])
    config = CLIPConfig(
        values.get("projection_dim", 512),
        VisionConfig(**vision),
        TextConfig(**text, pooling="argmax" if text["eos_id"] == LEGACY_EOS else "eos"),
        replace(preprocess, **ours.get("preprocess", {})),
    )
    return config, ours.get("cleaning", "")


def _read_tower(path: Path, values: dict[str, Any], name: str, names: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Settings of a tower. Old configs hold a second dictionary, which replaces the first one entirely."""
    if not isinstance(values.get(name), dict):
        raise UserError(f"{path} lacks {name}; expected the config of a CLIPModel, with both towers")
    second = values.get(f"{name}_dict")
    tower = read_settings(path, values[name] if second is None else second, names)
    if tower["activation"] not in ACTIVATIONS:
        raise UserError(f"{path}: {name} has hidden_act {tower['activation']!r}; known are {', '.join(ACTIVATIONS)}")
    return tower | {"mlp_ratio": tower.pop("mlp_width") / tower["width"], "norm_eps": float(tower["norm_eps"])}


def _read_preprocess(folder: Path, image_size: int, channels: int) -> PreprocessConfig:
    """Read a folder's preprocessor_config.json, or the same part of processor_config.json in newer folders.

    Without either, assume OpenAI's preprocessing, with a warning. Raises UserError for steps that we do not support.
    """
    path = folder / "preprocessor_config.json"
    whole = folder / "processor_config.json"
    if path.is_file():
        values = read_json(path)
    elif whole.is_file() and "image_processor" in (values := read_json(whole)):
        path = whole
        values = values["image_processor"]
    elif channels != 3:
        raise UserError(f"{folder} has no preprocessor_config.json, and OpenAI's is not for {channels} channels")
    else:
        warnings.warn(
            f"{folder} has no preprocessor_config.json: images are resized and normalised as for OpenAI's CLIP",
            stacklevel=2,
        )
        return PreprocessConfig("shortest", cut="floor", mean=OPENAI_MEAN, std=OPENAI_STD)
    kind = values.get("image_processor_type") or values.get("feature_extractor_type") or "CLIPImageProcessor"
    if not kind.startswith("CLIP"):
        raise UserError(f"{path} describes a {kind}; expected a CLIPImageProcessor")
    size = values.get("size", {"shortest_edge": 224})
    crop = values.get("crop_size", 224)
    shortest = size if isinstance(size, int) else size.get("shortest_edge")
    sides = {shortest} if shortest else {size.get("height"), size.get("width")}
    crops = set(crop.values()) if isinstance(crop, dict) else {crop}
    cropped = values.get("do_center_crop", True)
    refused = [
        (not values.get("do_resize", True), "do_resize", False),
        (len(sides) != 1 or None in sides, "size", size),
        (cropped and crops != {image_size}, "crop_size", crop),
        (not cropped and (shortest or sides != {image_size}), "do_center_crop", False),
        (values.get("resample", 3) not in RESAMPLE, "resample", values.get("resample")),
        (not values.get("do_rescale", True), "do_rescale", False),
        (abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6, "rescale_factor", values.get("rescale_factor")),
    ]
    for bad, key, value in refused:
        if bad:
            raise UserError(f"{path}: {key} is {value}; expected what gives {image_size}x{image_size} pixels in 0 .. 1")
    target = sides.pop()
    normalised = values.get("do_normalize", True)
    mean = values.get("image_mean", OPENAI_MEAN)
    std = values.get("image_std", OPENAI_STD)
    return PreprocessConfig(
        resize="shortest" if shortest else "stretch",
        resize_to=0 if target == image_size else target,
        interpolation=RESAMPLE[values.get("resample", 3)],
        cut="floor" if shortest or target != image_size else "round",  # where nothing is cut off, our default
        mean=_merge_equal(mean) if normalised else (0.0,),
        std=_merge_equal(std) if normalised else (1.0,),
    )


def _merge_equal(values: list[float]) -> tuple[float, ...]:
    """One number if all are equal, else all of them."""
    return tuple(values[:1] if len(set(values)) == 1 else values)


def import_patches(weights: Tensor) -> Tensor:
    """Patch weights (W, 3, P, P) of a grey CLIP -> (W, 1, P, P). Undoes `export_patches` to the bit."""
    return weights.double().sum(dim=1, keepdim=True).float()


def export_patches(weights: Tensor) -> Tensor:
    """Patch weights (W, 1, P, P) of a grey CLIP -> (W, 3, P, P), which see the luminance of a colour image.

    transformers does not convert images to grey, so a CLIP with one channel would fail on a colour image there. The
    weights of blue are the rest that red and green leave, so that the sum of the three, rounded once, is the original.
    """
    red, green, _ = (weights * share for share in LUMINANCE)
    blue = (weights.double() - red.double() - green.double()).float()
    return torch.cat([red, green, blue], dim=1)


def export_clip(
    config: CLIPConfig, tensors: dict[str, Tensor], tokenizer: Tokenizer
) -> tuple[dict[str, dict], dict[str, Tensor], list[str]]:
    """Convert a CLIP to their JSON files by name, their tensors, and sentences on what differs in transformers.

    Raises UserError for a setting that the format has no place for.
    """
    preprocess = export_preprocess(config)
    files = {CONFIG: _export_config(config, tokenizer), "preprocessor_config.json": preprocess}
    theirs = export_tensors(tensors)
    ours: dict[str, Any] = {"preprocess": {}}
    differences = []
    if config.vision.channels == 1:
        ours["grey"] = True
        theirs[PATCHES] = export_patches(theirs[PATCHES])
    if config.preprocess.cut == "round" and preprocess["do_center_crop"]:
        ours["preprocess"]["cut"] = "round"
        differences.append("where an odd number of pixels is cut off, the crop may lie one pixel further up or left")
    if config.preprocess.convert == "last":
        ours["preprocess"]["convert"] = "last"
        differences.append("transparent, palette and 1-bit images become RGB before they are resized, not after")
    if tokenizer.cleaning:
        ours["cleaning"] = tokenizer.cleaning
        differences.append("captions are not cleaned (ftfy, HTML entities)")
    return files | {OURS: ours} | export_tokenizer(tokenizer, config.text.context), theirs, differences


def _export_config(config: CLIPConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    text = config.text
    if text.pooling == "eos" and text.eos_id == LEGACY_EOS:
        raise UserError(f"an end-of-text token with the id {LEGACY_EOS} has another meaning in Hugging Face's format")
    towers = {
        f"{name}_config": {
            theirs: getattr(tower, ours) for ours, (theirs, _) in settings.items() if ours != "mlp_width"
        }
        | {"model_type": f"clip_{name}_model", "intermediate_size": round(tower.width * tower.mlp_ratio)}
        | {"projection_dim": config.embed_dim}
        for name, tower, settings in (("text", text, TEXT), ("vision", config.vision, VISION))
    }
    towers["text_config"] |= {"bos_token_id": tokenizer.start_id, "pad_token_id": tokenizer.pad_id}
    if text.pooling == "argmax":
        towers["text_config"]["eos_token_id"] = LEGACY_EOS
    towers["vision_config"]["num_channels"] = 3  # also for a grey CLIP: see `export_patches`
    return {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": config.embed_dim, **towers}


def export_preprocess(config: CLIPConfig) -> dict[str, Any]:
    """The content of preprocessor_config.json. Raises UserError for preprocessing that the format has no place for."""
    ours = config.preprocess
    size = config.vision.image_size
    if ours.resize == "longest":
        raise UserError("images that are resized by their longer side have no place in Hugging Face's format")
    target = ours.resize_to or size
    mean = list(ours.mean) * (3 if len(ours.mean) == 1 else 1)
    std = list(ours.std) * (3 if len(ours.std) == 1 else 1)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
        "size": {"shortest_edge": target} if ours.resize == "shortest" else {"height": target, "width": target},
        "resample": next(number for number, name in RESAMPLE.items() if name == ours.interpolation),
        "do_center_crop": ours.resize == "shortest" or target != size,
        "crop_size": {"height": size, "width": size},
        "rescale_factor": 1 / 255, "image_mean": mean, "image_std": std,
    }  # fmt: skip
