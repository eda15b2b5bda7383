"""The UNet's parts: residual block with adaptive group normalisation, attention with a condition, resampling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.layers import GroupNorm, StackedLinear, attend, split_heads


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least 8 channels where the count allows it."""
    groups = min(32, max(1, channels // 8))
    while channels % groups:
        groups -= 1
    return GroupNorm(groups, channels)


class ResBlock(nn.Module):
    """x + conv(SiLU(AdaGN(conv(SiLU(GN x))))), Dhariwal & Nichol 2021, section 4.3.

    The condition vector gives a scale and a shift after the second normalisation, h * (1 + scale) + shift. The last
    convolution starts at zero.
    """

    def __init__(self, channels: int, out: int, vector: int):
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = nn.Linear(vector, 2 * out)
        self.norm2 = group_norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """(B, C, H, W) and the activated condition (B, E) -> (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))  # (B, out, H, W)
        scale, shift = self.modulation(vector)[:, :, None, None].chunk(2, dim=1)  # both (B, out, 1, 1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class ConditionedAttention(nn.Module):
    """Self-attention over the pixels, with the condition's keys and values concatenated to the image's own.

    Nichol et al. 2021 (GLIDE), section 4.1. The output projection starts at zero.
    """

    def __init__(self, channels: int, condition: int, head_dim: int = 32):
        super().__init__()
        self.heads = attention_heads(channels, head_dim)
        self.norm = group_norm(channels)
        self.qkv = StackedLinear(channels, channels, stacks=3)
        self.condition_kv = StackedLinear(condition, channels, stacks=2)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), condition tokens (B, K, E) and their mask (B, K), False for padding -> (B, C, H, W)."""
        height, width = x.shape[-2:]
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        q, k, v = split_heads(self.qkv(pixels), 3, self.heads)  # (B, heads, H W, d)
        if tokens is not None:
            ck, cv = split_heads(self.condition_kv(tokens), 2, self.heads)  # (B, heads, K, d)
            k, v = torch.cat([ck, k], dim=2), torch.cat([cv, v], dim=2)  # (B, heads, K + H W, d)
            mask = F.pad(mask, (0, height * width), value=True)[:, None, None]  # (B, 1, 1, K + H W)
        h = attend(q, k, v, mask)  # (B, heads, H W, d)
        h = self.out(h.transpose(1, 2).flatten(2))  # (B, H W, C)
        return x + h.transpose(1, 2).unflatten(2, (height, width))


def attention_heads(channels: int, head_dim: int) -> int:
    """As many heads of at least head_dim numbers as divide the channels; one at least."""
    return next(heads for heads in range(max(1, channels // head_dim), 0, -1) if channels % heads == 0)


def downsample(channels: int) -> nn.Module:
    """Halve the height and the width, by a strided convolution."""
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


def upsample(channels: int) -> nn.Module:
    """Double the height and the width: nearest neighbours, then a convolution."""
    return UpsampledConv(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))


class UpsampledConv(nn.Sequential):
    """Nearest neighbours and a 3 x 3 convolution in one: a transposed convolution of 4 x 4 with stride 2.

    That is 4/9 of the arithmetic, as four equal pixels need not be multiplied one by one.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = F.pad(self[1].weight.transpose(0, 1).flip(2, 3), (1, 1, 1, 1))
        weight = weight[:, :, 1:] + weight[:, :, :-1]  # what falls on the same pixel, along the height and the width
        weight = weight[..., 1:] + weight[..., :-1]  # (C, C, 4, 4)
        return F.conv_transpose2d(x, weight, self[1].bias, stride=2, padding=1)
