"""How the image embedding and the caption enter the UNet (Ramesh et al. 2022, section 2.1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from unclip.layers import Block, EmbeddingScaler, init_transformer, replace_empty


class Condition(NamedTuple):
    """The UNet's condition. It does not depend on the time, so it is computed once for all steps."""

    vector: Tensor  # (B, E), added to the timestep embedding
    tokens: Tensor  # (B, K, W), concatenated to the attention's keys and values
    mask: Tensor  # (B, K), False for padding

    def first(self, count: int) -> "Condition":
        """The conditions of the first `count` rows."""
        return Condition(self.vector[:count], self.tokens[:count], self.mask[:count])


class ImageCondition(nn.Module):
    """The image embedding's two ways in: a vector, and a few tokens of context."""

    def __init__(self, embed_dim: int, vector: int, tokens: int, width: int):
        super().__init__()
        self.tokens = tokens
        self.scaler = EmbeddingScaler(embed_dim)
        self.null = nn.Parameter(nn.init.normal_(torch.empty(embed_dim), std=0.02))
        self.to_vector = nn.Linear(embed_dim, vector)
        self.to_tokens = nn.Linear(embed_dim, tokens * width)

    def forward(self, embeddings: Tensor, drop: Tensor) -> Condition:
        """Unit embeddings (B, D) -> vector (B, E), tokens (B, 4, W). The null stands in where drop (B,)."""
        embeddings = torch.where(drop[:, None], self.null, self.scaler.scale(embeddings))
        tokens = self.to_tokens(embeddings).unflatten(1, (self.tokens, -1))  # (B, 4, W)
        return Condition(self.to_vector(embeddings), tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))


class TextCondition(nn.Module):
    """The caption's way in: a small transformer over CLIP's token features."""

    def __init__(self, text_width: int, width: int, layers: int, heads: int):
        super().__init__()
        self.project = nn.Linear(text_width, width)
        self.null = nn.Parameter(nn.init.normal_(torch.empty(width), std=0.02))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        init_transformer(self.blocks)

    def forward(self, tokens: Tensor, mask: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """Token features (B, L, W_text) and mask (B, L) -> tokens (B, L, W) and mask (B, L).

        Only the learned null is left of a caption that is empty (B,).
        """
        x, mask = replace_empty(self.project(tokens), mask, empty, self.null)
        for block in self.blocks:
            x, _ = block(x, mask[:, None, None])
        return self.norm(x), mask
