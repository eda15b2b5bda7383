"""How the image embedding and the caption enter the UNet (Ramesh et al. 2022, section 2.1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from unclip.layers import Block, EmbeddingScaler, init_transformer


class Condition(NamedTuple):
    """What the UNet is conditioned on: independent of t, so computed once for all steps of a sample."""

    vector: Tensor  # (B, E), added to the timestep embedding
    tokens: Tensor  # (B, K, W), concatenated to the attention's keys and values
    mask: Tensor  # (B, K), False for padding


class ImageCondition(nn.Module):
    """The image embedding's two ways in: a vector, and a few tokens of context."""

    def __init__(self, embed_dim: int, vector: int, tokens: int, width: int):
        super().__init__()
        self.tokens = tokens
        self.scaler = EmbeddingScaler(embed_dim)
        self.null = nn.Parameter(torch.randn(embed_dim) * 0.02)
        self.to_vector = nn.Linear(embed_dim, vector)
        self.to_tokens = nn.Linear(embed_dim, tokens * width)

    def forward(self, images: Tensor, drop: Tensor | None = None) -> Condition:
        """Unit embeddings (B, D) -> vector (B, E), tokens (B, 4, W); drop (B,) marks those that become the null."""
        images = self.scaler.scale(images)
        if drop is not None:
            images = torch.where(drop[:, None], self.null, images)
        tokens = self.to_tokens(images).unflatten(1, (self.tokens, -1))  # (B, 4, W)
        return Condition(self.to_vector(images), tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))


class TextCondition(nn.Module):
    """The caption's way in: a small transformer over CLIP's token encodings."""

    def __init__(self, text_width: int, width: int, layers: int):
        super().__init__()
        self.text_width = text_width
        self.project = nn.Linear(text_width, width)
        self.null = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, max(1, width // 32)) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        init_transformer(self.blocks)

    def forward(self, encodings: Tensor, mask: Tensor, drop: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodings (B, L, text_width) and mask (B, L) -> tokens (B, L, W) and mask (B, L).

        A dropped caption becomes a single null token, so that not even its length is told.
        """
        x = self.project(encodings)  # (B, L, W)
        if drop is not None:
            first = torch.arange(mask.shape[1], device=mask.device) == 0
            mask = torch.where(drop[:, None], first, mask)
            x = torch.where(drop[:, None, None], self.null.to(x.dtype), x)
        for block in self.blocks:
            x, _ = block(x, mask[:, None, None])
        return self.norm(x), mask
