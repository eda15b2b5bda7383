"""How images become the input of a CLIP's image tower. The settings travel with the weights."""

from dataclasses import dataclass
from typing import Literal

from unclip.fields import bounded

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of the images that OpenAI's CLIP was trained on."""


@dataclass(frozen=True)
class PreprocessConfig:
    resize: Literal["stretch", "shortest", "longest"] = "stretch"
    """The side that becomes `resize_to` pixels long. stretch: both. shortest: the shorter one, and the middle is cut
    out. longest: the longer one, and the rest is filled with black."""
    resize_to: int = bounded(0, 0, 4096)
    """In pixels; 0 for the image tower's own size."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation between pixels. Both kinds average over pixels that a smaller image merges."""
    cut: Literal["round", "floor"] = "round"
    """Where the middle begins if an odd number of pixels is cut off: torchvision rounds to even, transformers rounds
    down."""
    mean: tuple[float, ...] = bounded((0.5,), -1000, 1000)
    """Subtracted from values in 0 .. 1; one number per channel, or one for all."""
    std: tuple[float, ...] = bounded((0.5,), 1e-6, 1000)
    """Divides the result; one number per channel, or one for all."""
    convert: Literal["first", "last"] = "first"
    """When a PIL image of another mode becomes grey or RGB. first: before resizing, with transparent parts on white, as
    in transformers. last: after resizing, as in open_clip, which takes the nearest pixels of a palette image and drops
    transparency."""
