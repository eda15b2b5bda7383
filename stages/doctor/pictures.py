"""Measures of images uint8 (N, C, H, W)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def is_constant(images: Tensor) -> Tensor:
    """Whether each image (N,) is of one colour but for noise of two grey levels."""
    return images.float().flatten(2).std(dim=2).amax(dim=1) < 2


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """The correlation (N,) of the pixels of images with those of others, (N, ...) both; 0 for constant ones."""
    a, b = (F.normalize(x.float().flatten(1) - x.float().flatten(1).mean(dim=1, keepdim=True), dim=1) for x in (a, b))
    return (a * b).sum(dim=1)


def distance(a: Tensor, b: Tensor) -> float:
    """The root mean square difference of images, in grey levels."""
    return (a.float() - b.float()).square().mean().sqrt().item()


def variety(images: Tensor) -> float:
    """The root mean square deviation of images from their mean image, in grey levels."""
    return distance(images, images.float().mean(dim=0, keepdim=True).expand(images.shape))


def nearest_distances(images: Tensor, others: Tensor) -> Tensor:
    """The root mean square difference (N,) of each image to the nearest of M others, in grey levels."""
    points = images.flatten(1).float()
    nearest = torch.stack([torch.cdist(points, part.flatten(1).float()).amin(dim=1) for part in others.split(2000)])
    return nearest.amin(dim=0) / points.shape[1] ** 0.5


def saturated_share(images: Tensor) -> float:
    """The share of values that are black or white."""
    return ((images == 0) | (images == 255)).float().mean().item()


def grain(images: Tensor) -> float:
    """The deviation in the flattest quarter of each image's squares of 3 x 3 pixels, in grey levels, on average."""
    pixels = images.float()
    mean, mean_of_squares = (F.avg_pool2d(values, 3, stride=1) for values in (pixels, pixels.square()))
    deviation = (mean_of_squares - mean.square()).clamp(min=0).sqrt().mean(dim=1).flatten(1)  # (N, places)
    return deviation.quantile(0.25, dim=1).mean().item()
