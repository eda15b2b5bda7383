"""The one way in which images are made smaller and larger, in training as in sampling: antialiased bicubic."""

import torch.nn.functional as F
from torch import Tensor


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Float images (B, C, H, W) -> (B, C, height, width), by Pillow's bicubic filter. It may overshoot the range."""
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
