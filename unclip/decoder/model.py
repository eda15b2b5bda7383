"""The network of the decoder (Ramesh et al. 2022, section 2.1): a condition, read once per sample, and a UNet.

On Nichol et al. 2021 (GLIDE) and Dhariwal & Nichol 2021.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unclip.decoder.condition import Condition, ImageCondition, TextCondition
from unclip.decoder.unet import UNet, UNetConfig
from unclip.fields import bounded, check, flattened, from_data
from unclip.layers import timestep_embedding


@dataclass(frozen=True)
class DecoderConfig:
    unet: UNetConfig = flattened(UNetConfig())
    embed_dim: int = from_data(0, 0, 16_384)
    """Dimension of CLIP's embeddings."""
    text_width: int = from_data(0, 0, 16_384)
    """Width of CLIP's token features."""
    image_size: int = from_data(28, 1, 1024)
    """Height and width of the images that are sampled, in pixels."""
    channels: int = from_data(1, 1, 4)
    """1 for grey, 3 for colour."""
    image_tokens: int = bounded(4, 1, 256)
    """Tokens that the image embedding is projected to for the attention."""
    text: bool = True
    """Let the decoder read the caption too, through a text transformer over CLIP's token features."""
    text_layers: int = bounded(1, 0, 64)
    """Blocks of that transformer; 0 leaves a projection."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.text and self.text_layers and self.unet.condition_width % self.text_heads:
            yield "text_layers", "be 0 unless the condition_width is a multiple of 32, or below 64"

    @property
    def text_heads(self) -> int:
        """Attention heads of the text transformer, of 32 numbers each; one if it is narrower than two of them."""
        return max(1, self.unet.condition_width // 32)


class DecoderNetwork(nn.Module):
    """A condition, read once per sample, and a UNet, called at every step."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        check(config)
        self.config = config
        vector = config.unet.vector_width
        width = config.unet.condition_width
        self.image_condition = ImageCondition(config.embed_dim, vector, config.image_tokens, width)
        self.text_condition = None
        if config.text:
            self.text_condition = TextCondition(config.text_width, width, config.text_layers, config.text_heads)
        self.time = nn.Sequential(nn.Linear(config.unet.width, vector), nn.SiLU(), nn.Linear(vector, vector))
        self.unet = UNet(config.unet, config.channels, config.channels)

    def condition(self, embeddings: Tensor, drop: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor) -> Condition:
        """Read B image embeddings and B captions.

        Args:
            embeddings: unit image embeddings (B, D).
            drop: (B,), True where the learned null takes the place of the embedding.
            tokens: token features of the captions (B, L, W_text).
            mask: (B, L), False for padding.
            empty: (B,), True where the learned null takes the place of the caption.
        """
        condition = self.image_condition(embeddings, drop)
        if self.text_condition is None:
            return condition
        tokens, mask = self.text_condition(tokens, mask, empty)
        tokens = torch.cat([condition.tokens, tokens], dim=1)  # (B, 4 + L, W)
        return Condition(condition.vector, tokens, torch.cat([condition.mask, mask], dim=1))

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Noised images (B, C, H, W) at times (B,) -> prediction (B, C, H, W), for any H and W."""
        time = self.time(timestep_embedding(time, self.config.unet.width).to(x.dtype))  # (B, E)
        return self.unet(x, time + condition.vector, condition.tokens, condition.mask)
