"""open_clip's safetensors with their open_clip_config.json; and OpenAI's state dict, whose keys are the same.

OpenAI's has no config: its shapes and what is fixed in OpenAI's code say everything.
"""

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from unclip.clip.model import CLIPConfig
from unclip.clip.preprocess import OPENAI_MEAN, OPENAI_STD, PreprocessConfig
from unclip.clip.text import TextConfig
from unclip.clip.vision import VisionConfig
from unclip.errors import UserError
from unclip.files import read_json

NAMES = (
    ("vision.blocks.", "visual.transformer.resblocks."), ("text.blocks.", "transformer.resblocks."),
    (".norm1.", ".ln_1."), (".norm2.", ".ln_2."), (".attention.out.", ".attn.out_proj."),
    (".attention.qkv.", ".attn.in_proj_"), (".mlp.0.", ".mlp.c_fc."), (".mlp.2.", ".mlp.c_proj."),
    ("vision.patch.", "visual.conv1."), ("vision.class_token", "visual.class_embedding"),
    ("vision.positions", "visual.positional_embedding"),
    ("vision.norm_pre.", "visual.ln_pre."), ("vision.norm_post.", "visual.ln_post."),
    ("vision.projection.weight", "visual.proj"),
    ("text.tokens.", "token_embedding."), ("text.positions", "positional_embedding"),
    ("text.norm_final.", "ln_final."), ("text.projection.weight", "text_projection"),
)  # fmt: skip
TRANSPOSED = ("vision.projection.weight", "text.projection.weight")
IGNORED = ("attn_mask", "input_resolution", "context_length", "vocab_size")
"""Keys that hold no weights."""

# What is read here, by part of the config, with open_clip's defaults (its CLIPVisionCfg, CLIPTextCfg, PreprocessCfg).
VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
TEXT = {
    "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0, "eos_id": 2,
    "pool_type": "argmax",
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
"""Keys that change nothing in a trained CLIP of the kind that is held here."""
HELD = {
    "pos_embed_type": "learnable", "proj_type": "linear", "block_type": "default", "pool_type": "tok",
    "tokenizer_kwargs": {"clean": "lower"},
}  # fmt: skip
"""Of these choices the one that is held here; any other key is a switch that has to be off."""
RESIZE = {"shortest": "shortest", "longest": "longest", "squash": "stretch"}


def read_config(path: Path) -> CLIPConfig:
    """Our config of an open_clip_config.json. Raises UserError, naming it, for what our module cannot hold."""
    values = read_json(path)
    model = values.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(k), dict) for k in ("vision_cfg", "text_cfg")):
        raise UserError(f"{path} lacks model_cfg with vision_cfg and text_cfg; expected open_clip's own config")
    vision, text = VISION | model["vision_cfg"], TEXT | model["text_cfg"]
    _refuse(path, "vision_cfg", vision, {*VISION, "norm_kwargs"})
    _refuse(path, "text_cfg", text, {*TEXT, "norm_kwargs"})
    _refuse(path, "model_cfg", model, {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"})
    if not isinstance(vision["layers"], int):
        raise UserError(f"{path}: vision_cfg has layers {vision['layers']}, as ResNets have; only ViTs are known")
    for key in ("image_size", "patch_size"):
        sides = vision[key] if isinstance(vision[key], list) else [vision[key]]
        if len(set(sides)) != 1:
            raise UserError(f"{path}: {key} is {vision[key]}; only squares are known")
        vision[key] = sides[0]
    if text["pool_type"] not in ("argmax", "eos"):
        raise UserError(f"{path}: text_cfg has pool_type {text['pool_type']!r}; known are argmax, eos")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return CLIPConfig(
        embed_dim=model["embed_dim"],
        vision=VisionConfig(
            image_size=vision["image_size"], channels=3, patch_size=vision["patch_size"],
            heads=vision["width"] // vision["head_width"], **_transformer(vision, activation),
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"], eos_id=text["eos_id"], pooling=text["pool_type"],
            context=text["context_length"], heads=text["heads"], **_transformer(text, activation),
        ),
        preprocess=_preprocess(path, PREPROCESS | (values.get("preprocess_cfg") or {})),
    )  # fmt: skip


def _refuse(path: Path, part: str, values: dict[str, Any], read: set[str]) -> None:
    for key, value in values.items():
        if key not in read | UNUSED and value not in (None, False, {}, HELD.get(key)):
            raise UserError(f"{path}: {part} has {key} {value!r}, which this CLIP has no place for")


def _transformer(tower: dict[str, Any], activation: str) -> dict[str, Any]:
    return {
        "width": tower["width"],
        "layers": tower["layers"],
        "activation": activation,
        "mlp_ratio": int(tower["width"] * tower["mlp_ratio"]) / tower["width"],
        "norm_eps": (tower.get("norm_kwargs") or {}).get("eps", 1e-5),
    }


def _preprocess(path: Path, values: dict[str, Any]) -> PreprocessConfig:
    held = {  # "size" is not among them: open_clip too takes that of the image tower, whatever is said here
        "mode": values["mode"] == "RGB",
        "interpolation": values["interpolation"] in ("bicubic", "bilinear"),
        "resize_mode": values["resize_mode"] in RESIZE,
        "fill_color": values["fill_color"] == 0,
    }
    for key, known in held.items():
        if not known:
            raise UserError(f"{path}: preprocess_cfg has {key} {values[key]!r}, which is not known here")
    return PreprocessConfig(
        resize=RESIZE[values["resize_mode"]],
        interpolation=values["interpolation"],
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )


def openai_config(tensors: dict[str, Tensor], path: Path) -> CLIPConfig:
    """The config of OpenAI's state dict, read off its shapes as OpenAI's own `build_model` does.

    Heads are 64 wide, the activation is QuickGELU, the embedding is read at the highest id, and images are resized to
    the shorter side. Raises UserError for a ResNet tower, or for another file.
    """
    if "visual.layer1.0.conv1.weight" in tensors:
        raise UserError(f"{path} holds a ResNet image tower; only Vision Transformers (ViT-B/32 and such) are known")
    needed = ("visual.conv1.weight", "visual.positional_embedding", "positional_embedding", "token_embedding.weight",
              "text_projection")  # fmt: skip
    if missing := [key for key in needed if key not in tensors]:
        raise UserError(
            f"{path} holds no {missing[0]}, so it is no state dict of OpenAI's CLIP; an open_clip file needs its "
            "open_clip_config.json beside it, a Hugging Face one its config.json"
        )
    if not {"input_resolution", "context_length", "vocab_size"} & set(tensors):  # which OpenAI's files hold
        warnings.warn(f"{path} has no config: taken as OpenAI's, with QuickGELU and heads of 64 channels", stacklevel=2)
    width, channels, patch_size, _ = tensors["visual.conv1.weight"].shape
    grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    vocab_size, text_width = tensors["token_embedding.weight"].shape

    def layers(prefix: str) -> int:
        return len({key.split("resblocks.")[1].split(".")[0] for key in tensors if key.startswith(prefix)})

    return CLIPConfig(
        embed_dim=tensors["text_projection"].shape[1],
        vision=VisionConfig(
            image_size=grid * patch_size, channels=channels, patch_size=patch_size,
            **_openai_tower(width, layers("visual.transformer.resblocks.")),
        ),
        text=TextConfig(
            vocab_size=vocab_size, eos_id=vocab_size - 1, pooling="argmax",
            context=len(tensors["positional_embedding"]),
            **_openai_tower(text_width, layers("transformer.resblocks.")),
        ),
        preprocess=PreprocessConfig("shortest", mean=OPENAI_MEAN, std=OPENAI_STD),
    )  # fmt: skip


def _openai_tower(width: int, layers: int) -> dict[str, Any]:
    return {"width": width, "heads": width // 64, "layers": layers, "activation": "quick_gelu"}


def import_tensors(names: list[str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors of those `names` from theirs, which are taken out of `tensors`; the missing are left out."""
    custom = "text.token_embedding.weight" in tensors  # open_clip's CustomTextCLIP keeps its text tower apart
    found = {}
    for name in names:
        their = name
        for own, replacement in NAMES:
            their = their.replace(own, replacement)
        if custom and name.startswith("text."):
            their = f"text.{their}"
        if their in tensors:
            tensor = tensors.pop(their)
            found[name] = tensor.T if name in TRANSPOSED else tensor.reshape(()) if name == "logit_scale" else tensor
    for key in [key for key in tensors if key.split(".")[-1] in IGNORED]:
        del tensors[key]
    return found
