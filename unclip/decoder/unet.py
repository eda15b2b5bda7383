"""The decoder: a UNet that turns a CLIP image embedding, and a caption, into pixels by diffusion.

Ramesh et al. 2022, section 2.1, on Nichol et al. 2021 (GLIDE) and Dhariwal & Nichol 2021.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.decoder.blocks import ConditionedAttention, Resample, ResBlock, downsample, group_norm, upsample
from unclip.decoder.condition import Condition, ImageCondition, TextCondition
from unclip.diffusion import GaussianDiffusion, Prediction, Schedule
from unclip.errors import UserError
from unclip.layers import timestep_embedding
from unclip.settings import FromData


@dataclass(frozen=True)
class DecoderConfig:
    embed_dim: FromData = 0
    """Dimension of CLIP's embeddings."""
    text_width: FromData = 0
    """Width of CLIP's token encodings."""
    image_size: FromData = 28
    """Height and width of the images that are sampled, in pixels."""
    channels: FromData = 1
    """1 for grey, 3 for colour."""
    space_to_depth: int = 2
    """Fold squares of so many pixels into channels at the input, and back at the output; 1 for none."""
    width: int = 48
    """Channels at the finest level."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level, as multiples of the width; every level halves the size of the one before."""
    blocks: int = 2
    """Residual blocks a level."""
    attention_levels: tuple[int, ...] = (1,)
    """Levels with attention, 0 being the finest; the middle always has it."""
    head_dim: int = 32
    """Channels of an attention head."""
    image_tokens: int = 4
    """Tokens that the image embedding is projected to for the attention."""
    condition_width: int = 128
    """Width of the condition's tokens."""
    text: bool = True
    """Whether the decoder reads the caption too, through a text transformer on CLIP's token encodings."""
    text_layers: int = 1
    """Blocks of that transformer; 0 leaves a projection."""
    scale_shift: bool = True
    """Condition by scale and shift after normalisation; otherwise by addition before it."""
    resample: Resample = "conv"
    """Change size by (strided) convolution, or by pooling and nearest neighbours."""
    dropout: float = 0.0
    """Dropout in the residual blocks."""
    timesteps: int = 1000
    """Diffusion steps of the training process."""
    schedule: Schedule = "cosine"
    """Noise schedule."""
    prediction: Prediction = "v"
    """What the network predicts."""


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        sizes = (config.width, config.space_to_depth, config.blocks, config.image_tokens, *config.multipliers)
        if min(sizes) < 1 or not config.multipliers:
            raise UserError(f"the decoder needs widths, blocks and multipliers of at least 1, not {config}")
        self.config = config
        vector = 4 * config.width
        tokens = config.condition_width
        self.image_condition = ImageCondition(config.embed_dim, vector, config.image_tokens, tokens)
        self.text_condition = TextCondition(config.text_width, tokens, config.text_layers) if config.text else None
        self.time = nn.Sequential(nn.Linear(config.width, vector), nn.SiLU(), nn.Linear(vector, vector))

        def block(channels: int, out: int) -> ResBlock:
            return ResBlock(channels, out, vector, config.scale_shift, config.dropout)

        def attention(level: int, channels: int) -> nn.Module | None:
            if level in config.attention_levels:
                return ConditionedAttention(channels, tokens, config.head_dim)
            return None

        widths = [config.width * m for m in config.multipliers]
        folded = config.channels * config.space_to_depth**2
        self.conv_in = nn.Conv2d(folded, widths[0], 3, padding=1)
        channels, skips = widths[0], [widths[0]]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(UNetLayer(block(channels, width), attention(level, width)))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.down.append(downsample(channels, config.resample))
                skips.append(channels)
        self.middle = nn.ModuleList([
            UNetLayer(block(channels, channels), ConditionedAttention(channels, tokens, config.head_dim)),
            UNetLayer(block(channels, channels), None),
        ])  # fmt: skip
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(UNetLayer(block(channels + skips.pop(), width), attention(level, width)))
                channels = width
            if level > 0:
                self.up.append(upsample(channels, config.resample))
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, folded, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # an untrained network puts out zero
        nn.init.zeros_(self.conv_out.bias)

    def diffusion(self) -> GaussianDiffusion:
        return GaussianDiffusion(self.config.timesteps, self.config.schedule, self.config.prediction)

    def condition(
        self,
        images: Tensor,
        encodings: Tensor | None = None,
        mask: Tensor | None = None,
        drop_image: Tensor | None = None,
        drop_text: Tensor | None = None,
    ) -> Condition:
        """Read the condition.

        Args:
            images: unit image embeddings (B, D).
            encodings, mask: the caption's token encodings (B, L, text_width), and (B, L) False for padding; without
                them every caption is the null.
            drop_image, drop_text: (B,), True where the learned null takes the place of the embedding, of the caption.
        """
        condition = self.image_condition(images, drop_image)
        if self.text_condition is None:
            return condition
        if encodings is None:
            encodings = images.new_zeros(len(images), 1, self.config.text_width)
            mask = images.new_ones(len(images), 1, dtype=torch.bool)
            drop_text = mask[:, 0]
        tokens, mask = self.text_condition(encodings, mask, drop_text)
        tokens = torch.cat([condition.tokens, tokens], dim=1)  # (B, 4 + L, W)
        return Condition(condition.vector, tokens, torch.cat([condition.mask, mask], dim=1))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noised images (B, C, H, W) at times t (B,) -> prediction (B, C, H, W), for any H and W.

        A size that the levels cannot halve is padded with zeros, and the result cropped: nothing is lost.
        """
        height, width = x.shape[-2:]
        multiple = self.config.space_to_depth * 2 ** (len(self.config.multipliers) - 1)
        pad_h, pad_w = -height % multiple, -width % multiple
        top, left = pad_h // 2, pad_w // 2
        x = F.pad(x, (left, pad_w - left, top, pad_h - top))

        vector = F.silu(self.time(timestep_embedding(t, self.config.width)) + condition.vector)  # (B, E)
        h = self.conv_in(F.pixel_unshuffle(x, self.config.space_to_depth))  # (B, width, H / s, W / s)
        skips = [h]
        for layer in self.down:
            h = layer(h, vector, condition) if isinstance(layer, UNetLayer) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, vector, condition)
        for layer in self.up:
            if isinstance(layer, UNetLayer):
                h = layer(torch.cat([h, skips.pop()], dim=1), vector, condition)
            else:
                h = layer(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        h = F.pixel_shuffle(h, self.config.space_to_depth)  # (B, C, H, W)
        return h[..., top : top + height, left : left + width]


class UNetLayer(nn.Module):
    """A residual block and, where the level has it, attention."""

    def __init__(self, block: ResBlock, attention: ConditionedAttention | None):
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, vector: Tensor, condition: Condition) -> Tensor:
        x = self.block(x, vector)
        return x if self.attention is None else self.attention(x, condition.tokens, condition.mask)
