"""The UNet (Ho et al. 2020; Dhariwal & Nichol 2021) that the decoder denoises with. It knows no caption and no time:
what modulates it is a vector, and what it attends to are tokens, so that other stages can use it too."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.decoder.blocks import ConditionedAttention, ResBlock, downsample, group_norm, upsample
from unclip.fields import bounded, check


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
    """Levels with attention, 0 being the finest; the middle always has it."""
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


class UNet(nn.Module):
    """Images (B, channels_in, H, W) -> (B, channels_out, H, W), for any H and W."""

    def __init__(self, config: UNetConfig, channels_in: int, channels_out: int):
        super().__init__()
        check(config)
        self.config = config
        widths = [config.width * m for m in config.multipliers]
        squares = config.space_to_depth**2
        self.conv_in = nn.Conv2d(channels_in * squares, widths[0], 3, padding=1)
        channels, skips = widths[0], [widths[0]]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(UNetLayer(config, channels, width, attention=level in config.attention_levels))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.down.append(downsample(channels))
                skips.append(channels)
        self.middle = nn.ModuleList(UNetLayer(config, channels, channels, attention) for attention in (True, False))
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                attention = level in config.attention_levels
                self.up.append(UNetLayer(config, channels + skips.pop(), width, attention))
                channels = width
            if level > 0:
                self.up.append(upsample(channels))
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, channels_out * squares, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # an untrained network puts out zero
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, vector: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Denoise, modulated and attending.

        A size that the levels cannot halve is padded with zeros, and the result cropped: nothing is lost.

        Args:
            x: images (B, channels_in, H, W).
            vector: (B, 4 width), of the time and of whatever else modulates every block.
            tokens: (B, K, condition_width), concatenated to the keys and values of each attention.
            mask: (B, K), False for tokens that are padding.
        """
        height, width = x.shape[-2:]
        multiple = self.config.space_to_depth * 2 ** (len(self.config.multipliers) - 1)
        pad_h, pad_w = -height % multiple, -width % multiple
        top, left = pad_h // 2, pad_w // 2
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
        self.block = ResBlock(channels, out, config.vector_width)
        self.attention = ConditionedAttention(out, config.condition_width, config.head_dim) if attention else None

    def forward(self, x: Tensor, vector: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.block(x, vector)
        return x if self.attention is None else self.attention(x, tokens, mask)
