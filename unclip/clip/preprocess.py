"""From images as they come to what a CLIP's image tower was trained on. The settings travel with the weights."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from unclip.clip.preprocess_config import PreprocessConfig
from unclip.errors import UserError
from unclip.images import from_pil

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601, as in Pillow)."""


class Preprocess:
    """Images -> normalised float (B, channels, size, size)."""

    def __init__(self, size: int, channels: int, config: PreprocessConfig | None = None):
        self.size, self.channels, self.config = size, channels, config or PreprocessConfig()
        for name, values in (("mean", self.config.mean), ("std", self.config.std)):
            if len(values) not in (1, channels):
                raise UserError(
                    f"the {name} of an image with {channels} channels is one number or {channels}, not {values}"
                )

    def __call__(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """PIL images of any size and mode, or uint8 (B, C, H, W)."""
        if not isinstance(images, Tensor):
            return torch.cat([self(self.pixels(image)[None]) for image in images])
        x = self.crop(self.resize(self.colour(images))) / 255
        mean, std = (x.new_tensor(v).view(1, -1, 1, 1) for v in (self.config.mean, self.config.std))
        return (x - mean) / std

    def colour(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float (B, channels, H, W): colour to grey by luminance, grey to colour by copying."""
        x = images.float()
        if x.shape[1] == self.channels:
            return x
        weights = x.new_tensor(LUMINANCE) if x.shape[1] == 3 else x.new_ones(1)
        return torch.einsum("bchw,c->bhw", x, weights)[:, None].expand(-1, self.channels, -1, -1)

    def pixels(self, image: Image.Image) -> Tensor:
        """A PIL image -> uint8 (channels, H, W), which is resized and cut already where `convert` is "last"."""
        if self.config.convert == "last" and not image.mode.startswith(("I", "F")):  # what has more than 8 bits is not
            image = ImageOps.exif_transpose(image)
            height, width = self.resized(image.height, image.width)
            image = image.resize((width, height), Image.Resampling[self.config.interpolation.upper()])
            top, left = self.corner(height, width)
            image = image.crop((left, top, left + self.size, top + self.size))  # zeros beyond its edges
            image = image.convert("L" if self.channels == 1 else "RGB")
            image.info = {}  # a transparent colour, which open_clip passes over
        return from_pil(image, self.channels)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """What an image's height and width become."""
        target, kind = self.config.resize_to or self.size, self.config.resize
        if kind == "stretch":
            return target, target
        # torchvision cuts the longer side to a whole number; timm, which fits by the longer one, rounds
        side, whole = (min(height, width), int) if kind == "shortest" else (max(height, width), round)
        return max(1, whole(target * height / side)), max(1, whole(target * width / side))

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Row and column where the middle begins; negative where black is put before too few pixels."""
        whole = round if self.config.cut == "round" else int
        surplus = (height - self.size, width - self.size)
        return tuple(whole(more / 2) if more >= 0 else -(-more // 2) for more in surplus)

    def resize(self, x: Tensor) -> Tensor:
        """float 0 .. 255 (B, C, H, W) -> of the size that `resize` asks for, in whole values as Pillow leaves them."""
        size = self.resized(*x.shape[-2:])
        if size == tuple(x.shape[-2:]):
            return x
        for part in ((x.shape[-2], size[1]), size):  # first along the rows, then the columns, in whole values between
            x = F.interpolate(x, part, mode=self.config.interpolation, antialias=True).round().clamp(0, 255)
        return x

    def crop(self, x: Tensor) -> Tensor:
        """The middle (B, C, size, size); where there is too little, black is put around it."""
        height, width = x.shape[-2:]
        top, left = self.corner(height, width)
        return F.pad(x, (-left, left + self.size - width, -top, top + self.size - height))  # less than zero cuts
