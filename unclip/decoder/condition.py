"""How the image embedding and the caption enter the UNet (Ramesh et al. 2022, section 2.1)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unclip.clip.text_features import TextFeatures
from unclip.layers import Block, EmbeddingScaler, init_transformer
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class Condition(TensorBatch):
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
        self.null = nn.Parameter(nn.init.normal_(torch.empty(embed_dim), std=0.02))
        self.to_vector = nn.Linear(embed_dim, vector)
        self.to_tokens = nn.Linear(embed_dim, tokens * width)

    def forward(self, embeddings: Tensor, drop: Tensor) -> Condition:
        """Unit embeddings (B, D) -> vector (B, E), tokens (B, 4, W); drop (B,) marks those that become the null."""
        embeddings = torch.where(drop[:, None], self.null, self.scaler.scale(embeddings))
        tokens = self.to_tokens(embeddings).unflatten(1, (self.tokens, -1))  # (B, 4, W)
        return Condition(self.to_vector(embeddings), tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))


class TextCondition(nn.Module):
    """The caption's way in: a small transformer over CLIP's token encodings."""

    def __init__(self, text_width: int, width: int, layers: int, heads: int):
        super().__init__()
        self.project = nn.Linear(text_width, width)
        self.null = nn.Parameter(nn.init.normal_(torch.empty(width), std=0.02))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        init_transformer(self.blocks)

    def forward(self, captions: TextFeatures) -> tuple[Tensor, Tensor]:
        """B captions -> tokens (B, L, W) and mask (B, L); of an empty caption the learned null is all that is left."""
        captions = replace(captions, tokens=self.project(captions.tokens)).fill(self.null)
        x = captions.tokens
        for block in self.blocks:
            x, _ = block(x, captions.mask[:, None, None])
        return self.norm(x), captions.mask
