"""Open a trained CLIP with what belongs to it: its tokenizer, and the preprocessing of its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.checkpoint import load_stage, sha256
from unclip.clip.model import CLIP, CLIPConfig
from unclip.clip.tokenizer import Tokenizer
from unclip.errors import UserError
from unclip.images import from_pil


@dataclass(frozen=True)
class Preprocess:
    """Images as they come -> what the image tower was trained on."""

    image_size: int
    channels: int
    mean: float = 0.5
    std: float = 0.5

    def __call__(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """PIL images, or uint8 (B, C, H, W) -> normalised float (B, channels, image_size, image_size)."""
        if not isinstance(images, Tensor):
            images = from_pil(images, self.channels, self.image_size)
        x = images.float() / 255
        if x.shape[1] != self.channels:  # colour to grey by luminance (ITU-R 601, as Pillow), grey to colour by copying
            luminance = torch.tensor([0.299, 0.587, 0.114], device=x.device) if x.shape[1] == 3 else x.new_ones(1)
            x = torch.einsum("bchw,c->bhw", x, luminance)[:, None].expand(-1, self.channels, -1, -1)
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bicubic", antialias=True).clamp(0, 1)
        return (x - self.mean) / self.std


def load_clip(path: str | Path) -> tuple[CLIP, Tokenizer, Preprocess]:
    """Open the CLIP of a pipeline folder, or a `clip` folder inside one. Raises UserError if there is none."""
    path = Path(path)
    folder = path / "clip" if (path / "clip").is_dir() else path
    clip, manifest = load_stage(folder, CLIP, CLIPConfig)
    path = folder.parent / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    found, expected = sha256(path.read_bytes()), manifest.parents.get("tokenizer", "unknown")
    if found != expected:
        raise UserError(
            f"{path} has the SHA-256 {found[:12]}.., but the CLIP beside it was trained with {expected[:12]}..; "
            "restore the tokenizer that belongs to it"
        )
    config = clip.config
    return clip, tokenizer, Preprocess(config.vision.image_size, config.vision.channels)
