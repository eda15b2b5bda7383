"""How images become the input of a CLIP's image tower. The settings travel with the weights."""

from dataclasses import dataclass
from typing import Literal

from unclip.fields import bounded

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the images that OpenAI's CLIP was trained on."""


@dataclass(frozen=True)
class PreprocessConfig:
    resize: Literal["stretch", "shortest", "longest"] = "stretch"
    """Which side becomes `resize_to` pixels: both; the shorter, and the middle is cut out; the longer, and the rest is
    filled with black."""
    resize_to: int = bounded(0, 0, 4096)
    """In pixels; 0 for the image tower's own size."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How pixels are found between pixels; both average over what a smaller image merges."""
    cut: Literal["round", "floor"] = "round"
    """Where the middle begins if as much cannot be cut off on both sides: torchvision rounds, transformers rounds down.
    """
    mean: tuple[float, ...] = bounded((0.5,), -1000, 1000)
    """Subtracted from the values in 0 .. 1: one number per channel, or one for all."""
    std: tuple[float, ...] = bounded((0.5,), 1e-6, 1000)
    """Then divided by."""
    convert: Literal["first", "last"] = "first"
    """When a PIL image of another mode becomes grey or RGB: before it is resized, transparent parts put on white, as
    with transformers; or after, as with open_clip, which takes the nearest pixels of a palette and drops transparency.
    """
