"""OpenAI's state dict in safetensors. It has no config: its shapes, and what is fixed in OpenAI's code, say everything."""

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from unclip.clip.model import CLIPConfig
from unclip.clip.preprocess import OPENAI_MEAN, OPENAI_STD, PreprocessConfig
from unclip.clip.text import TextConfig
from unclip.clip.vision import VisionConfig
from unclip.errors import UserError


def read_config(path: Path, tensors: dict[str, Tensor]) -> tuple[CLIPConfig, str]:
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
            f"{path} holds no {missing[0]}, so it is not the state dict of OpenAI's CLIP; an open_clip file needs its "
            "open_clip_config.json beside it, a Hugging Face one its config.json"
        )
    if not {"input_resolution", "context_length", "vocab_size"} & set(tensors):  # which OpenAI's files hold
        warnings.warn(f"{path} has no config: taken as OpenAI's, with QuickGELU and heads of 64 channels", stacklevel=2)
    width, channels, patch_size, _ = tensors["visual.conv1.weight"].shape
    grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    vocab_size, text_width = tensors["token_embedding.weight"].shape

    def layers(prefix: str) -> int:
        return len({key.split("resblocks.")[1].split(".")[0] for key in tensors if key.startswith(prefix)})

    config = CLIPConfig(
        embed_dim=tensors["text_projection"].shape[1],
        vision=VisionConfig(
            image_size=grid * patch_size, channels=channels, patch_size=patch_size,
            **_tower(width, layers("visual.transformer.resblocks.")),
        ),
        text=TextConfig(
            vocab_size=vocab_size, eos_id=vocab_size - 1, pooling="argmax",
            context=len(tensors["positional_embedding"]),
            **_tower(text_width, layers("transformer.resblocks.")),
        ),
        preprocess=PreprocessConfig("shortest", convert="last", mean=OPENAI_MEAN, std=OPENAI_STD),
    )  # fmt: skip
    return config, "lower"


def _tower(width: int, layers: int) -> dict[str, Any]:
    return {"width": width, "heads": width // 64, "layers": layers, "activation": "quick_gelu"}
