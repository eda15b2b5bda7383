"""The image tower: a Vision Transformer (Dosovitskiy et al. 2020) as CLIP lays it out."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.fields import bounded, from_data
from unclip.layers import Activation, Block, init_transformer


@dataclass(frozen=True)
class VisionConfig:
    image_size: int = from_data(28, 1, 2048)
    """Height and width of the images, in pixels."""
    channels: int = from_data(1, 1, 4)
    """1 for grey, 3 for colour."""
    patch_size: int = bounded(7, 1, 2048)
    """Height and width of a patch. Rows and columns of the image beyond the last whole patch are not seen, so training
    makes the image larger where patches leave a rest."""
    width: int = bounded(128, 2, 16_384)
    """Width of the transformer."""
    layers: int = bounded(4, 1, 256)
    """Number of transformer blocks."""
    heads: int = bounded(4, 1, 256)
    """Attention heads; they divide the width."""
    activation: Activation = "gelu"
    """Non-linearity of the MLPs; OpenAI's weights need quick_gelu."""
    mlp_ratio: float = bounded(4.0, 0.1, 64)
    """Width of the MLPs' hidden layer, as a multiple of the transformer's width."""
    norm_eps: float = bounded(1e-5, 1e-12, 1)
    """Added to the variance in LayerNorm."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.width % self.heads:
            yield "heads", f"divide the width {self.width}"


class VisionTransformer(nn.Module):
    def __init__(self, config: VisionConfig, embed_dim: int):
        super().__init__()
        if not 1 <= config.patch_size <= config.image_size:
            raise UserError(f"patch_size must be from 1 to image_size {config.image_size}, not {config.patch_size}")
        if rest := config.image_size % config.patch_size:
            sizes = f"patches of {config.patch_size} pixels do not divide {config.image_size}"
            warnings.warn(f"{sizes}: CLIP does not see the last {rest} rows and columns of images", stacklevel=3)
        self.config = config
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.patch = nn.Conv2d(config.channels, config.width, config.patch_size, config.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.empty(config.width))
        self.positions = nn.Parameter(torch.empty(tokens, config.width))
        self.norm_pre = nn.LayerNorm(config.width, config.norm_eps)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, config.activation, config.norm_eps)
            for _ in range(config.layers)
        )
        self.norm_post = nn.LayerNorm(config.width, config.norm_eps)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Keep the variance in the patch convolution; use deviation width^-1/2 elsewhere, as CLIP does."""
        scale = self.config.width**-0.5
        nn.init.normal_(self.patch.weight, std=1 / math.sqrt(self.patch.weight[0].numel()))
        for weight in (self.class_token, self.positions, self.projection.weight):
            nn.init.normal_(weight, std=scale)
        init_transformer(self.blocks)

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Preprocessed images (B, C, H, W) -> embeddings (B, D), not yet of unit norm.

        Given `patches` (B, K), indices of K patches for each image, the transformer sees only those.
        """
        x = self.patch(images.to(self.patch.weight.dtype)).flatten(2).transpose(1, 2)  # (B, N, W)
        x = x + self.positions[1:]  # (B, N, W)
        if patches is not None:
            x = x.gather(1, patches[:, :, None].expand(-1, -1, x.shape[2]))  # (B, K, W)
        class_token = (self.class_token + self.positions[0]).expand(x.shape[0], 1, -1)  # (B, 1, W)
        x = self.norm_pre(torch.cat([class_token, x], dim=1))  # (B, 1 + K, W)
        for block in self.blocks[:-1]:
            x, _ = block(x)  # (B, 1 + K, W)
        x, _ = self.blocks[-1](x, at=0)  # (B, 1, W)
        return self.projection(self.norm_post(x[:, 0]))  # (B, D)
