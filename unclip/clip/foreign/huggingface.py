"""Hugging Face's CLIPModel folders: config.json, model.safetensors, preprocessor_config.json and a tokenizer.

`unclip.json`, beside them, is ours: it holds what their files have no place for, and transformers passes over it.
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

CONFIG, OURS = "config.json", "unclip.json"
PATCHES = their_keys("vision.patch.weight", HUGGING_FACE)[0]
# Our name of a setting, theirs, and the default, which config.json leaves out (transformers' CLIPTextConfig ...).
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
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
LEGACY_EOS = 2  # configs of before transformers 4.31 say 2, whatever the tokenizer's id; the highest id is then meant


def matches(folder: Path) -> bool:
    """Whether a folder's config.json is a transformers one."""
    return (folder / CONFIG).is_file() and "model_type" in read_json(folder / CONFIG)


def read_config(weights: Path, tensors: dict[str, Tensor]) -> tuple[CLIPConfig, str]:
    """Our config of the CLIPModel whose weights these are, and how its captions are cleaned.

    Raises UserError, naming the file, for what our module cannot hold.
    """
    folder, path = weights.parent, weights.parent / CONFIG
    values = read_json(path)
    if values["model_type"] != "clip":
        raise UserError(f"{path} describes a {values['model_type']!r} model; only CLIP models ('clip') can be read")
    text, vision = _tower(path, values, "text_config", TEXT), _tower(path, values, "vision_config", VISION)
    if not isinstance(text["eos_id"], int):
        raise UserError(f"{path}: eos_token_id is {text['eos_id']}; expected one number")
    preprocess = _find_preprocess(folder, vision["image_size"], vision["channels"])
    ours = read_json(folder / OURS) if (folder / OURS).is_file() else {}
    if ours.get("grey"):
        vision["channels"], tensors[PATCHES] = 1, import_patches(tensors[PATCHES])
    config = CLIPConfig(
        values.get("projection_dim", 512),
        VisionConfig(**vision),
        TextConfig(**text, pooling="argmax" if text["eos_id"] == LEGACY_EOS else "eos"),
        replace(preprocess, **ours.get("preprocess", {})),
    )
    return config, ours.get("cleaning", "")


def _tower(path: Path, values: dict[str, Any], name: str, names: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """A tower's settings. Old configs hold a second dictionary, which overrules the first, its defaults included."""
    if not isinstance(values.get(name), dict):
        raise UserError(f"{path} lacks {name}; expected the config of a CLIPModel, with both towers")
    second = values.get(f"{name}_dict")
    tower = read_settings(path, values[name] if second is None else second, names)
    if tower["activation"] not in ACTIVATIONS:
        raise UserError(f"{path}: {name} has hidden_act {tower['activation']!r}; known are {', '.join(ACTIVATIONS)}")
    return tower | {"mlp_ratio": tower.pop("mlp_width") / tower["width"], "norm_eps": float(tower["norm_eps"])}


def _find_preprocess(folder: Path, image_size: int, channels: int) -> PreprocessConfig:
    """Of a folder's preprocessor_config.json, or of the part of processor_config.json that newer files keep it in.

    Without either OpenAI's preprocessing is taken, with a warning. Raises UserError for what we do not do.
    """
    path, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    if path.is_file():
        values = read_json(path)
    elif whole.is_file() and "image_processor" in (values := read_json(whole)):
        path, values = whole, values["image_processor"]
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
    size, crop = values.get("size", {"shortest_edge": 224}), values.get("crop_size", 224)
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
    target, normalised = sides.pop(), values.get("do_normalize", True)
    mean, std = values.get("image_mean", OPENAI_MEAN), values.get("image_std", OPENAI_STD)
    return PreprocessConfig(
        resize="shortest" if shortest else "stretch",
        resize_to=0 if target == image_size else target,
        interpolation=RESAMPLE[values.get("resample", 3)],
        cut="floor" if shortest or target != image_size else "round",  # where nothing is cut, our own
        mean=_one_if_equal(mean) if normalised else (0.0,),
        std=_one_if_equal(std) if normalised else (1.0,),
    )


def _one_if_equal(values: list[float]) -> tuple[float, ...]:
    return tuple(values[:1] if len(set(values)) == 1 else values)


def import_patches(weights: Tensor) -> Tensor:
    """Undo `export_patches`, to the bit."""
    return weights.double().sum(dim=1, keepdim=True).float()


def export_patches(weights: Tensor) -> Tensor:
    """Patch weights (W, 1, P, P) -> (W, 3, P, P), which see the grey of a colour image: its luminance.

    transformers turns no image grey, so that a CLIP of one channel stops at a colour image there. Blue has what red
    and green leave: the sum of the three, rounded once, is the original.
    """
    red, green, _ = (weights * share for share in LUMINANCE)
    blue = (weights.double() - red.double() - green.double()).float()
    return torch.cat([red, green, blue], dim=1)


def export_clip(
    config: CLIPConfig, tensors: dict[str, Tensor], tokenizer: Tokenizer
) -> tuple[dict[str, dict], dict[str, Tensor], list[str]]:
    """Their JSON files by name, and their tensors, of a CLIP; and what transformers does in another way.

    Raises UserError for what the format has no place for.
    """
    preprocess, context = write_preprocess(config), config.text.context
    files = {CONFIG: _config(config, tokenizer), "preprocessor_config.json": preprocess}
    theirs, ours, differences = export_tensors(tensors), {"preprocess": {}}, []
    if config.vision.channels == 1:
        ours["grey"], theirs[PATCHES] = True, export_patches(theirs[PATCHES])
    if config.preprocess.cut == "round" and preprocess["do_center_crop"]:
        ours["preprocess"]["cut"] = "round"
        differences.append(
            "where an odd number of pixels is cut off, what is left may lie one pixel further up or left"
        )
    if config.preprocess.convert == "last":
        ours["preprocess"]["convert"] = "last"
        differences.append("transparent, palette and 1-bit images become RGB before they are resized, not after")
    if tokenizer.cleaning:
        ours["cleaning"] = tokenizer.cleaning
        differences.append("captions are not cleaned (ftfy, HTML entities)")
    return files | {OURS: ours} | export_tokenizer(tokenizer, context), theirs, differences


def _config(config: CLIPConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    text, vision = config.text, config.vision
    if text.pooling == "eos" and text.eos_id == LEGACY_EOS:
        raise UserError(f"an end-of-text token with the id {LEGACY_EOS} has another meaning in Hugging Face's format")
    towers = {
        f"{name}_config": {
            theirs: getattr(tower, ours) for ours, (theirs, _) in settings.items() if ours != "mlp_width"
        }
        | {"model_type": f"clip_{name}_model", "intermediate_size": round(tower.width * tower.mlp_ratio)}
        | {"projection_dim": config.embed_dim}
        for name, tower, settings in (("text", text, TEXT), ("vision", vision, VISION))
    }
    towers["text_config"] |= {"bos_token_id": tokenizer.start_id, "pad_token_id": tokenizer.pad_id}
    if text.pooling == "argmax":
        towers["text_config"]["eos_token_id"] = LEGACY_EOS
    towers["vision_config"]["num_channels"] = 3  # of a grey one too: see `export_patches`
    return {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": config.embed_dim, **towers}


def write_preprocess(config: CLIPConfig) -> dict[str, Any]:
    ours, size = config.preprocess, config.vision.image_size
    if ours.resize == "longest":
        raise UserError("images that are fitted in by their longer side have no place in Hugging Face's format")
    target = ours.resize_to or size
    mean, std = (list(v) * (3 if len(v) == 1 else 1) for v in (ours.mean, ours.std))
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
        "size": {"shortest_edge": target} if ours.resize == "shortest" else {"height": target, "width": target},
        "resample": next(number for number, name in RESAMPLE.items() if name == ours.interpolation),
        "do_center_crop": ours.resize == "shortest" or target != size,
        "crop_size": {"height": size, "width": size},
        "rescale_factor": 1 / 255, "image_mean": mean, "image_std": std,
    }  # fmt: skip
