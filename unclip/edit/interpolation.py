"""Spherical interpolation between embeddings, and between noises."""

import torch
import torch.nn.functional as F
from torch import Tensor


def slerp(a: Tensor, b: Tensor, amounts: Tensor) -> Tensor:
    """Interpolate between the rows of a and b (N, ...) along great circles (Shoemake 1985).

    Args:
        amounts: (K,); 0 gives a and 1 gives b. The angle turned is this share of the angle between the two rows, and
            the length changes along with it where the rows differ in length.

    Returns:
        (N, K, ...).
    """
    start = a.flatten(1).cpu().double()  # not every device has float64
    end = b.flatten(1).cpu().double()
    cosine = (F.normalize(start, dim=1) * F.normalize(end, dim=1)).sum(dim=1)
    angle = cosine.clamp(-1, 1).acos()[:, None]  # (N, 1)
    amounts = amounts.to(start)
    parallel = angle.sin() < 1e-6  # nearly one direction: the limit is the straight line
    divisor = torch.where(parallel, 1.0, angle.sin())
    weight_start = torch.where(parallel, 1 - amounts, ((1 - amounts) * angle).sin() / divisor)  # (N, K)
    weight_end = torch.where(parallel, amounts.expand_as(weight_start), (amounts * angle).sin() / divisor)
    between = weight_start[..., None] * start[:, None] + weight_end[..., None] * end[:, None]
    return between.unflatten(2, a.shape[1:]).to(a)
