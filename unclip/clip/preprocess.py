"""Turn images of any size and mode into the input of a CLIP's image tower."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.clip.preprocess_config import PreprocessConfig
from unclip.errors import UserError
from unclip.fitting import Fit
from unclip.images import from_pil
from unclip.pixels import load_upright, read_pixels, to_srgb

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601, as in Pillow)."""


class Preprocess:
    """Images -> normalised float (B, channels, size, size)."""

    def __init__(self, size: int, channels: int, config: PreprocessConfig | None = None, fit: Fit | None = None):
        """Prepare images for an image tower of this size.

        Args:
            fit: how the images that this CLIP was trained on were made square; PIL images are read in the same way.
                None: as `config` says, which is for CLIPs of other projects.
        """
        self.size = size
        self.channels = channels
        self.config = config or PreprocessConfig()
        self.fit = fit
        for name, values in (("mean", self.config.mean), ("std", self.config.std)):
            if len(values) not in (1, channels):
                raise UserError(
                    f"the {name} of an image with {channels} channels is one number or {channels}, not {values}"
                )

    def __call__(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Preprocess PIL images of any size and mode, or uint8 (B, C, H, W)."""
        if not isinstance(images, Tensor):
            return torch.cat([self(self.pil_to_pixels(image)[None]) for image in images])
        x = self.crop(self.resize(self.convert_channels(images))) / 255  # (B, channels, size, size) in 0 .. 1
        mean = constants(self.config.mean, x).view(1, -1, 1, 1)
        std = constants(self.config.std, x).view(1, -1, 1, 1)
        return (x - mean) / std

    def convert_channels(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float (B, channels, H, W): colour to grey by luminance, grey to colour by copying."""
        x = images.float()
        if x.shape[1] == self.channels:
            return x
        weights = constants(LUMINANCE, x) if x.shape[1] == 3 else x.new_ones(1)
        return torch.einsum("bchw,c->bhw", x, weights)[:, None].expand(-1, self.channels, -1, -1)

    def pil_to_pixels(self, image: Image.Image) -> Tensor:
        """A PIL image -> uint8 (channels, H, W). With `fit`, or if `convert` is "last", it is resized here."""
        if self.fit:
            pixels = read_pixels(image, self.config.resize_to or self.size, self.channels, self.fit)
            return torch.from_numpy(pixels).permute(2, 0, 1)
        has_8_bits = not image.mode.startswith(("I", "F"))
        if self.config.convert == "last" and has_8_bits:
            image = to_srgb(load_upright(image))
            height, width = self.resized_shape(image.height, image.width)
            image = image.resize((width, height), Image.Resampling[self.config.interpolation.upper()])
            top, left = self.crop_corner(height, width)
            image = image.crop((left, top, left + self.size, top + self.size))  # black outside the image
            image = image.convert("L" if self.channels == 1 else "RGB")
            image.info = {}  # drop a transparent colour, as open_clip does
        return from_pil(image, self.channels)

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, for an image of these."""
        target = self.config.resize_to or self.size
        if self.config.resize == "stretch":
            return target, target
        # torchvision truncates the longer side; timm, which resizes by the longer one, rounds the shorter
        if self.config.resize == "shortest":
            side = min(height, width)
            return max(1, int(target * height / side)), max(1, int(target * width / side))
        side = max(height, width)
        return max(1, round(target * height / side)), max(1, round(target * width / side))

    def crop_corner(self, height: int, width: int) -> tuple[int, int]:
        """Row and column where the middle square begins; negative where black is added on that side."""
        to_integer = round if self.config.cut == "round" else int

        def start(length: int) -> int:
            surplus = length - self.size
            return to_integer(surplus / 2) if surplus >= 0 else -(-surplus // 2)

        return start(height), start(width)

    def resize(self, x: Tensor) -> Tensor:
        """float 0 .. 255 (B, C, H, W) -> resized (B, C, H', W'), in whole values as Pillow leaves them."""
        height, width = x.shape[-2:]
        new_height, new_width = self.resized_shape(height, width)
        if (new_height, new_width) == (height, width):
            return x
        for shape in ((height, new_width), (new_height, new_width)):  # Pillow rounds after the horizontal pass too
            x = F.interpolate(x, shape, mode=self.config.interpolation, antialias=True).round().clamp(0, 255)
        return x

    def crop(self, x: Tensor) -> Tensor:
        """Cut out the middle (B, C, size, size); where the image is smaller, surround it with black."""
        height, width = x.shape[-2:]
        top, left = self.crop_corner(height, width)
        return F.pad(x, (-left, left + self.size - width, -top, top + self.size - height))  # negative padding cuts


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers (N,) where another tensor is, and of its type.

    They are filled in there: a copy from the CPU would make it wait for the device.
    """
    return torch.cat([like.new_full((1,), value) for value in values])
