"""Hugging Face's CLIPModel folders: config.json, model.safetensors, preprocessor_config.json and a tokenizer.

Their keys and ours differ in name alone, but for queries, keys and values, which are three matrices there and one here.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unclip.clip.model import CLIPConfig
from unclip.clip.preprocess import OPENAI_MEAN, OPENAI_STD, PreprocessConfig
from unclip.clip.text import TextConfig
from unclip.clip.vision import VisionConfig
from unclip.errors import UserError
from unclip.files import read_json

NAMES = (
    ("vision.blocks.", "vision_model.encoder.layers."), ("text.blocks.", "text_model.encoder.layers."),
    (".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."), (".attention.out.", ".self_attn.out_proj."),
    (".mlp.0.", ".mlp.fc1."), (".mlp.2.", ".mlp.fc2."),
    ("vision.patch.", "vision_model.embeddings.patch_embedding."),
    ("vision.class_token", "vision_model.embeddings.class_embedding"),
    ("vision.positions", "vision_model.embeddings.position_embedding.weight"),
    ("vision.norm_pre.", "vision_model.pre_layrnorm."), ("vision.norm_post.", "vision_model.post_layernorm."),
    ("vision.projection.", "visual_projection."),
    ("text.tokens.", "text_model.embeddings.token_embedding."),
    ("text.positions", "text_model.embeddings.position_embedding.weight"),
    ("text.norm_final.", "text_model.final_layer_norm."), ("text.projection.", "text_projection."),
)  # fmt: skip
QKV = tuple(f".self_attn.{name}_proj." for name in "qkv")
IGNORED = ("position_ids",)
"""Ends of keys that hold no weights."""

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu"}
# What config.json leaves out when it is the default (transformers' CLIPTextConfig and CLIPVisionConfig).
TEXT_DEFAULTS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
VISION_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
LEGACY_EOS = 2  # configs of before transformers 4.31 say 2, whatever the tokenizer's id; the highest id is then meant


def matches(folder: Path) -> bool:
    """Whether a folder's config.json is a transformers one."""
    return (folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json")


def read_config(folder: Path) -> CLIPConfig:
    """Our config of a CLIPModel folder. Raises UserError, naming it, for what our module cannot hold."""
    path = folder / "config.json"
    values = read_json(path)
    if values["model_type"] != "clip":
        raise UserError(f"{path} is of a {values['model_type']!r} model; --clip takes CLIP models ('clip')")
    missing = [key for key in ("text_config", "vision_config") if not isinstance(values.get(key), dict)]
    if missing:
        raise UserError(f"{path} lacks {missing[0]}; expected the config of a CLIPModel, with both towers")
    text, vision = (
        _tower(values, name, defaults) for name, defaults in (("text", TEXT_DEFAULTS), ("vision", VISION_DEFAULTS))
    )
    for name, tower in (("text_config", text), ("vision_config", vision)):
        if tower["hidden_act"] not in ACTIVATIONS:
            raise UserError(
                f"{path}: {name} has hidden_act {tower['hidden_act']!r}; known are {', '.join(ACTIVATIONS)}"
            )
    for key in ("image_size", "patch_size"):
        if isinstance(vision[key], list):
            if len(set(vision[key])) != 1:
                raise UserError(f"{path}: {key} is {vision[key]}; only squares are known")
            vision[key] = vision[key][0]
    eos = text["eos_token_id"]
    if not isinstance(eos, int):
        raise UserError(f"{path}: eos_token_id is {eos}; expected one number")
    return CLIPConfig(
        embed_dim=values.get("projection_dim", 512),
        vision=VisionConfig(
            image_size=vision["image_size"], channels=vision["num_channels"], patch_size=vision["patch_size"],
            **_transformer(vision),
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"], eos_id=eos, pooling="argmax" if eos == LEGACY_EOS else "eos",
            context=text["max_position_embeddings"], **_transformer(text),
        ),
        preprocess=read_preprocess(folder, vision["image_size"], vision["num_channels"]),
    )  # fmt: skip


def _tower(values: dict[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """A tower's settings. Old configs hold a second dictionary, which overrules the first, its defaults included."""
    second = values.get(f"{name}_config_dict")
    return defaults | values[f"{name}_config"] | ({} if second is None else defaults | second)


def _transformer(tower: dict[str, Any]) -> dict[str, Any]:
    return {
        "width": tower["hidden_size"],
        "layers": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "activation": ACTIVATIONS[tower["hidden_act"]],
        "mlp_ratio": tower["intermediate_size"] / tower["hidden_size"],
        "norm_eps": float(tower["layer_norm_eps"]),
    }


def read_preprocess(folder: Path, image_size: int, channels: int) -> PreprocessConfig:
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
        raise UserError(f"{path} is of a {kind}; expected a CLIPImageProcessor")
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
            raise UserError(f"{path}: {key} is {value}, which does not lead to {image_size} pixels in 0 .. 1 a side")
    normalised = values.get("do_normalize", True)
    target = sides.pop()
    return PreprocessConfig(
        resize="shortest" if shortest else "stretch",
        resize_to=0 if target == image_size else target,
        interpolation=RESAMPLE[values.get("resample", 3)],
        cut="floor" if shortest or target != image_size else "round",  # where nothing is cut, our own
        mean=tuple(values.get("image_mean", OPENAI_MEAN)) if normalised else (0.0,),
        std=tuple(values.get("image_std", OPENAI_STD)) if normalised else (1.0,),
    )


def write_config(config: CLIPConfig, start_id: int, pad_id: int) -> dict[str, Any]:
    """config.json of one of our configs. Raises UserError for what it has no place for."""
    text, vision = config.text, config.vision
    if text.pooling == "eos" and text.eos_id == LEGACY_EOS:
        raise UserError(f"an end-of-text token with the id {LEGACY_EOS} has another meaning in Hugging Face's format")
    eos = LEGACY_EOS if text.pooling == "argmax" else text.eos_id
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context,
            "bos_token_id": start_id,
            "eos_token_id": eos,
            "pad_token_id": pad_id,
            **_their_transformer(text, config.embed_dim),
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": vision.image_size,
            "num_channels": vision.channels,
            "patch_size": vision.patch_size,
            **_their_transformer(vision, config.embed_dim),
        },
    }


def _their_transformer(tower: TextConfig | VisionConfig, embed_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": round(tower.width * tower.mlp_ratio),
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.norm_eps,
        "projection_dim": embed_dim,
    }


def write_preprocess(config: CLIPConfig) -> dict[str, Any]:
    """preprocessor_config.json of one of our configs. Raises UserError for what it has no place for."""
    ours, size, channels = config.preprocess, config.vision.image_size, config.vision.channels
    if ours.resize == "longest":
        raise UserError("images that are fitted in by their longer side have no place in Hugging Face's format")
    target = ours.resize_to or size
    mean, std = (list(v) * (channels if len(v) == 1 else 1) for v in (ours.mean, ours.std))
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": target} if ours.resize == "shortest" else {"height": target, "width": target},
        "resample": {name: number for number, name in RESAMPLE.items()}[ours.interpolation],
        "do_center_crop": ours.resize == "shortest" or target != size,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": channels == 3,
    }


def their_names(ours: str) -> list[str]:
    """Their key, or keys, for one of ours."""
    name = ours
    for own, their in NAMES:
        name = name.replace(own, their)
    return [name.replace(".attention.qkv.", qkv) for qkv in QKV] if ".attention.qkv." in name else [name]


def import_tensors(names: list[str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors of those `names` from theirs, which are taken out of `tensors`; the missing are left out."""
    found = {}
    for name in names:
        parts = [tensors.pop(their, None) for their in their_names(name)]
        if all(part is not None for part in parts):
            found[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    for key in [key for key in tensors if key.endswith(IGNORED)]:
        del tensors[key]
    return found


def export_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors from ours."""
    theirs = {}
    for name, tensor in tensors.items():
        names = their_names(name)
        theirs |= dict(zip(names, tensor.chunk(len(names)) if len(names) > 1 else [tensor], strict=True))
    return theirs
