"""Random changes of training images that keep what their captions say."""

import torch
from torch import Tensor


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image (B, C, H, W) with probability one half."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift each image (B, C, H, W) by up to `pixels` along each axis, see `shift_images`."""
    if pixels == 0:
        return images
    return shift_images(images, random_offsets(len(images), pixels, generator))


def random_offsets(count: int, pixels: int, generator: torch.Generator) -> Tensor:
    """Draw vertical and horizontal offsets (N, 2), whole numbers in -pixels .. pixels."""
    return torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator)[..., 0].T


def shift_images(images: Tensor, offsets: Tensor) -> Tensor:
    """Shift images (B, C, H, W) by offsets (B, 2) in pixels. Rows and columns that enter repeat the image's edge."""
    batch, _, height, width = images.shape
    dy, dx = offsets.T[..., None]
    rows = (dy + torch.arange(height)).clamp(0, height - 1)  # (B, H)
    columns = (dx + torch.arange(width)).clamp(0, width - 1)  # (B, W)
    shifted = images[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return shifted.permute(0, 3, 1, 2)
