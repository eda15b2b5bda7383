"""Metrics of images beside the real ones: plain functions of float tensors (N, C, H, W) in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
"""Pixels per side of the Gaussian window of SSIM, whose deviation is 1.5 (Wang et al. 2004, section III.C)."""


def psnr(images: Tensor, real: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (N,) in dB. The range of the pixels is 2."""
    return 10 * (4 / (images - real).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)).log10()


def ssim(images: Tensor, real: Tensor) -> Tensor:
    """Return the structural similarity (N,), 1 for equal images (Wang et al. 2004, eq. 13); the mean over channels."""
    places = torch.arange(WINDOW, dtype=images.dtype) - WINDOW // 2
    window = torch.exp(-0.5 * (places / 1.5).square())
    window = (window / window.sum()).expand(images.shape[1], 1, 1, -1)

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, window, groups=x.shape[1])
        return F.conv2d(x, window.mT, groups=x.shape[1])

    mean_a = blur(images)
    mean_b = blur(real)
    variance_a = blur(images.square()) - mean_a.square()
    variance_b = blur(real.square()) - mean_b.square()
    covariance = blur(images * real) - mean_a * mean_b
    c1 = (0.01 * 2) ** 2
    c2 = (0.03 * 2) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def edge_strength(images: Tensor) -> Tensor:
    """Return the mean magnitude (N,) of the gradient between neighbouring pixels. Blurred images have less."""
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    return (right.square() + down.square()).sqrt().mean(dim=(1, 2, 3))
