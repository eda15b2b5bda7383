"""The UNet (Ho et al. 2020; Dhariwal & Nichol 2021): residual blocks, attention with a condition, resampling.

It knows no caption and no time: a vector modulates it and it attends to tokens, so that other parts can use it too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.fields import bounded, check
from unclip.layers import GroupNorm, StackedLinear, attend, split_heads, zero_init

Norm = Literal["group", "pixel"]


@dataclass(frozen=True)
class UNetConfig:
    space_to_depth: int = bounded(2, 1, 16)
    """Fold squares of so many pixels into channels at the input, and back at the output; 1 for none."""
    width: int = bounded(48, 1, 4096)
    """Channels at the finest level."""
    multipliers: tuple[int, ...] = bounded((1, 2), 1, 64)
    """Channels of each level, as multiples of the width; every level halves the size of the one before."""
    blocks: int = bounded(2, 1, 32)
    """Residual blocks per level."""
    attention_levels: tuple[int, ...] = bounded((1,), 0, 15)
    """Levels with attention, 0 being the finest."""
    middle_attention: bool = True
    """Attention in the middle too."""
    norm: Norm = "group"
    """Normalise channels in groups, over the whole image; or each pixel by itself, which makes the network local."""
    head_dim: int = bounded(32, 8, 1024)
    """Channels of an attention head."""
    condition_width: int = bounded(128, 1, 16_384)
    """Width of the tokens that it attends to."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if not 1 <= len(self.multipliers) <= 8:
            yield "multipliers", "be 1 to 8 numbers, one for each level"
        if self.attention_levels and max(self.attention_levels) >= len(self.multipliers):
            yield "attention_levels", f"be below {len(self.multipliers)}, the number of levels"

    @property
    def vector_width(self) -> int:
        """Width of the vector that modulates every residual block."""
        return 4 * self.width

    @property
    def stride(self) -> int:
        """Pixels between two pixels of the coarsest level."""
        return self.space_to_depth * 2 ** (len(self.multipliers) - 1)

    @property
    def reach(self) -> int:
        """The distance within which pixels of the input matter to one of the output, where the network is local.

        It is without attention, and with pixels normalised by themselves. Each 3 x 3 convolution adds a pixel of its
        level.
        """
        distance = 2 * self.space_to_depth  # into the network and out of it
        for level in range(len(self.multipliers)):
            pixel = self.space_to_depth * 2**level
            convolutions = 2 * self.blocks + 2 * (self.blocks + 1) + 2 * (level > 0)  # down, up, and between levels
            distance += convolutions * pixel
        return distance + 4 * self.stride + self.space_to_depth  # the middle; and the pixels of a square


class UNet(nn.Module):
    """Images (B, channels_in, H, W) -> (B, channels_out, H, W), for any H and W."""

    def __init__(self, config: UNetConfig, channels_in: int, channels_out: int):
        super().__init__()
        check(config)
        self.config = config
        widths = [config.width * m for m in config.multipliers]
        squares = config.space_to_depth**2
        self.conv_in = nn.Conv2d(channels_in * squares, widths[0], 3, padding=1)
        channels = widths[0]
        skips = [channels]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(UNetLayer(config, channels, width, attention=level in config.attention_levels))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.down.append(downsample(channels))
                skips.append(channels)
        in_middle = (config.middle_attention, False)
        self.middle = nn.ModuleList(UNetLayer(config, channels, channels, attention) for attention in in_middle)
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                attention = level in config.attention_levels
                self.up.append(UNetLayer(config, channels + skips.pop(), width, attention))
                channels = width
            if level > 0:
                self.up.append(upsample(channels))
        self.norm_out = make_norm(config.norm, channels)
        self.conv_out = nn.Conv2d(channels, channels_out * squares, 3, padding=1)
        zero_init(self.conv_out)  # an untrained network puts out zero

    def forward(self, x: Tensor, vector: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Predict the output for noised images x.

        A size that the levels cannot halve is padded with zeros, and the result is cropped, so nothing is lost.

        Args:
            x: images (B, channels_in, H, W).
            vector: (B, 4 width), of the time and of whatever else modulates every block.
            tokens: (B, K, condition_width), concatenated to the keys and values of each attention; None for none.
            mask: (B, K), False for tokens that are padding.
        """
        height, width = x.shape[-2:]
        pad_h = -height % self.config.stride
        pad_w = -width % self.config.stride
        top = pad_h // 2
        left = pad_w // 2
        x = F.pad(x, (left, pad_w - left, top, pad_h - top))

        condition = (F.silu(vector), tokens, mask)
        h = self.conv_in(F.pixel_unshuffle(x, self.config.space_to_depth))  # (B, width, H / s, W / s)
        skips = [h]
        for layer in self.down:
            h = layer(h, *condition) if isinstance(layer, UNetLayer) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, *condition)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), *condition) if isinstance(layer, UNetLayer) else layer(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        h = F.pixel_shuffle(h, self.config.space_to_depth)  # (B, channels_out, H, W)
        return h[..., top : top + height, left : left + width]


class UNetLayer(nn.Module):
    """A residual block and, where the level has it, attention."""

    def __init__(self, config: UNetConfig, channels: int, out: int, attention: bool):
        super().__init__()
        self.block = ResBlock(channels, out, config.vector_width, config.norm)
        self.attention = ConditionedAttention(out, config.condition_width, config.head_dim) if attention else None

    def forward(self, x: Tensor, vector: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.block(x, vector)
        return x if self.attention is None else self.attention(x, tokens, mask)


def make_norm(norm: Norm, channels: int) -> nn.Module:
    return group_norm(channels) if norm == "group" else PixelNorm(channels)


class PixelNorm(nn.Module):
    """Divide each pixel's channels by their root mean square, and scale each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return x * (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt() * self.scale[:, None, None]


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

    def __init__(self, channels: int, out: int, vector: int, norm: Norm = "group"):
        super().__init__()
        self.norm1 = make_norm(norm, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = nn.Linear(vector, 2 * out)
        self.norm2 = make_norm(norm, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        zero_init(self.conv2)

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
        zero_init(self.out)

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), condition tokens (B, K, E) and their mask (B, K), False for padding -> (B, C, H, W)."""
        height, width = x.shape[-2:]
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        q, k, v = split_heads(self.qkv(pixels), 3, self.heads)  # (B, heads, H W, d)
        if tokens is not None:
            ck, cv = split_heads(self.condition_kv(tokens), 2, self.heads)  # (B, heads, K, d)
            k = torch.cat([ck, k], dim=2)  # (B, heads, K + H W, d)
            v = torch.cat([cv, v], dim=2)
            assert mask is not None, "condition tokens come with their mask"
            mask = F.pad(mask, (0, height * width), value=True)[:, None, None]  # (B, 1, 1, K + H W)
        h = attend(q, k, v, mask)  # (B, heads, H W, d)
        h = self.out(h.transpose(1, 2).flatten(2))  # (B, H W, C)
        return x + h.transpose(1, 2).unflatten(2, (height, width))


def attention_heads(channels: int, head_dim: int) -> int:
    """The number of heads, of at least head_dim numbers each, that divides the channels; at least one."""
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
        conv = self[1]
        assert isinstance(conv, nn.Conv2d)
        weight = F.pad(conv.weight.transpose(0, 1).flip(2, 3), (1, 1, 1, 1))
        weight = (
            weight[:, :, 1:] + weight[:, :, :-1]
        )  # entries that fall on the same pixel, along the height and the width
        weight = weight[..., 1:] + weight[..., :-1]  # (C, C, 4, 4)
        return F.conv_transpose2d(x, weight, conv.bias, stride=2, padding=1)
