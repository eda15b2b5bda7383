"""Read open_clip's safetensors with their open_clip_config.json; and OpenAI's state dict, which has the same keys.

OpenAI's has no config: it follows from the shapes and from constants in OpenAI's code.
"""

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from unclip.clip.foreign.weight_files import read_json, read_settings
from unclip.clip.model import CLIPConfig
from unclip.clip.preprocess_config import OPENAI_MEAN, OPENAI_STD, PreprocessConfig
from unclip.clip.text import TextConfig
from unclip.clip.vision import VisionConfig
from unclip.errors import UserError

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
# Our name of a setting -> their name and their default (open_clip's CLIPVisionCfg, CLIPTextCfg, PreprocessCfg).
VISION = {
    "width": ("width", 768), "layers": ("layers", 12), "head_width": ("head_width", 64),
    "mlp_ratio": ("mlp_ratio", 4.0), "image_size": ("image_size", 224), "patch_size": ("patch_size", 16),
    "norm": ("norm_kwargs", None),
}  # fmt: skip
TEXT = {
    "width": ("width", 512), "layers": ("layers", 12), "heads": ("heads", 8), "mlp_ratio": ("mlp_ratio", 4.0),
    "context": ("context_length", 77), "vocab_size": ("vocab_size", 49408), "eos_id": ("eos_id", 2),
    "pooling": ("pool_type", "argmax"), "norm": ("norm_kwargs", None),
}  # fmt: skip
PREPROCESS = {
    "mode": "RGB", "mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic",
    "resize_mode": "shortest", "fill_color": 0,
}  # fmt: skip
UNUSED = {
    "patch_dropout", "output_tokens", "pad_id", "cast_dtype", "init_logit_scale", "custom_text", "hf_tokenizer_name",
    "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained",
    "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "hf_model_pretrained", "hf_proj_type",
    "hf_pooler_type", "nonscalar_logit_scale",
}  # fmt: skip
"""Keys that change nothing in a trained CLIP of the kind that our module holds."""
HELD = {
    "pos_embed_type": "learnable", "proj_type": "linear", "block_type": "default", "pool_type": "tok",
    "tokenizer_kwargs": {"clean": "lower"},
}  # fmt: skip
"""Settings with one supported value. Any other key is a switch that must be off."""
RESIZE: dict[str, Any] = {"shortest": "shortest", "longest": "longest", "squash": "stretch"}


def read_config(weights: Path, tensors: dict[str, Tensor]) -> tuple[CLIPConfig, str]:
    """Our config for the CLIP with these weights, from its open_clip_config.json, and how its captions are cleaned.

    Raises UserError, naming the file, for a setting that our module has no place for.
    """
    path = weights.parent / CONFIG
    values = read_json(path)
    model = values.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(k), dict) for k in ("vision_cfg", "text_cfg")):
        raise UserError(f"{path} lacks model_cfg with vision_cfg and text_cfg; expected open_clip's own config")
    return _convert_config(path, model, values.get("preprocess_cfg") or {})


def _convert_config(path: Path, model: dict[str, Any], preprocess: dict[str, Any]) -> tuple[CLIPConfig, str]:
    vision = _read_tower(path, model, "vision_cfg", VISION)
    text = _read_tower(path, model, "text_cfg", TEXT)
    _refuse_unknown_settings(path, "model_cfg", model, {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"})
    if not isinstance(vision["layers"], int):
        raise UserError(f"{path}: vision_cfg has layers {vision['layers']}, as ResNets have; only ViTs can be read")
    if text["pooling"] not in ("argmax", "eos"):
        raise UserError(f"{path}: text_cfg has pool_type {text['pooling']!r}; known are argmax, eos")
    vision |= {"channels": 3, "heads": vision["width"] // vision.pop("head_width")}
    preprocessing = _read_preprocess(path, PREPROCESS | preprocess)
    config = CLIPConfig(model["embed_dim"], VisionConfig(**vision), TextConfig(**text), preprocessing)
    # a named tokenizer is one of transformers, which handles case itself
    return config, "whitespace" if model["text_cfg"].get("hf_tokenizer_name") else "lower"


def _read_tower(path: Path, model: dict[str, Any], part: str, names: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    _refuse_unknown_settings(path, part, model[part], {theirs for theirs, _ in names.values()})
    tower = read_settings(path, model[part], names)
    return tower | {
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "mlp_ratio": int(tower["width"] * tower["mlp_ratio"]) / tower["width"],
        "norm_eps": (tower.pop("norm") or {}).get("eps", 1e-5),
    }


def _refuse_unknown_settings(path: Path, part: str, values: dict[str, Any], known: set[str]) -> None:
    for key, value in values.items():
        if key not in known | UNUSED and value not in (None, False, {}, HELD.get(key)):
            raise UserError(f"{path}: {part} has {key} {value!r}, which this CLIP has no place for")


def _read_preprocess(path: Path, values: dict[str, Any]) -> PreprocessConfig:
    # "size" is ignored: open_clip too always uses the size of the image tower
    supported = {
        "mode": ("RGB",), "interpolation": ("bicubic", "bilinear"), "resize_mode": tuple(RESIZE), "fill_color": (0,)
    }  # fmt: skip
    for key, known in supported.items():
        if values[key] not in known:
            raise UserError(f"{path}: preprocess_cfg has {key} {values[key]!r}; known are {known}")
    return PreprocessConfig(
        resize=RESIZE[values["resize_mode"]],
        interpolation=values["interpolation"],
        convert="last",
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )


def read_openai_config(path: Path, tensors: dict[str, Tensor]) -> tuple[CLIPConfig, str]:
    """The config of OpenAI's state dict, derived from its shapes as OpenAI's `build_model` does.

    Heads are 64 wide, the activation is QuickGELU, the embedding is read at the highest id, and images are resized by
    their shorter side. Raises UserError for a ResNet tower, or for another file.
    """
    if "visual.layer1.0.conv1.weight" in tensors:
        raise UserError(f"{path} holds a ResNet image tower; only Vision Transformers (ViT-B/32 and such) can be read")
    needed = ("visual.conv1.weight", "visual.positional_embedding", "positional_embedding", "token_embedding.weight",
              "text_projection")  # fmt: skip
    if missing := [key for key in needed if key not in tensors]:
        raise UserError(
            f"{path} holds no {missing[0]}, so it is not the state dict of OpenAI's CLIP; an open_clip file needs its "
            "open_clip_config.json beside it, a Hugging Face one its config.json"
        )
    if not {"input_resolution", "context_length", "vocab_size"} & set(tensors):  # which OpenAI's files have
        warnings.warn(f"{path} has no config: taken as OpenAI's, with QuickGELU and heads of 64 channels", stacklevel=2)
    width, _, patch_size, _ = tensors["visual.conv1.weight"].shape
    grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    vocab_size, text_width = tensors["token_embedding.weight"].shape

    def layers(prefix: str) -> int:
        return len({key.split("resblocks.")[1].split(".")[0] for key in tensors if key.startswith(prefix)})

    vision = {
        "image_size": grid * patch_size, "patch_size": patch_size, "width": width,
        "layers": layers("visual.transformer.resblocks."),
    }  # fmt: skip
    text = {
        "context_length": len(tensors["positional_embedding"]), "vocab_size": vocab_size, "eos_id": vocab_size - 1,
        "width": text_width, "heads": text_width // 64, "layers": layers("transformer.resblocks."),
    }  # fmt: skip
    embed_dim = tensors["text_projection"].shape[1]
    model = {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    return _convert_config(path, model, {})
