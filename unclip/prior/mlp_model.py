"""A network of fully connected residual blocks for the diffusion prior (Li et al. 2024, RCG, arXiv 2312.03701)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unclip.fields import bounded, check, from_data
from unclip.layers import timestep_embedding, zero_init
from unclip.prior.model import TextRegression


@dataclass(frozen=True)
class MLPConfig:
    embed_dim: int = from_data(0, 0, 16_384)
    """Dimension of CLIP's embeddings."""
    width: int = bounded(256, 2, 16_384)
    """Width of the residual blocks."""
    layers: int = bounded(4, 1, 256)
    """Number of residual blocks."""


class TextCondition(NamedTuple):
    """All that is read of B captions: their text embedding, without the tokens."""

    vector: Tensor  # (B, W)
    centre: Tensor  # (B, D), the scaled image embedding that is linearly likely given the text

    def select(self, rows: Tensor) -> "TextCondition":
        """The conditions of the captions with these numbers, each as often as it is named."""
        return TextCondition(self.vector[rows], self.centre[rows])


class ResidualBlock(nn.Module):
    """x + MLP(x), to whose hidden layer time and text are added."""

    def __init__(self, width: int):
        super().__init__()
        self.into = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))
        self.condition_in = nn.Sequential(nn.SiLU(), nn.Linear(width, width))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, W), and time and text as one vector (B, W) -> (B, W)."""
        return x + self.out(self.into(x) + self.condition_in(condition))


class ResidualMLP(nn.Module):
    """Predicts from [noised residual, timestep, text embedding]; the methods are those of `PriorTransformer`."""

    def __init__(self, config: MLPConfig):
        super().__init__()
        check(config)
        self.config = config
        width = config.width
        self.regression = TextRegression(config.embed_dim)
        self.text_in = nn.Linear(config.embed_dim, width)
        self.null_text = nn.Parameter(torch.empty(config.embed_dim))
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.image_in = nn.Linear(config.embed_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.layers))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, config.embed_dim))
        nn.init.normal_(self.null_text, std=0.02)
        for linear in (*(block.out[-1] for block in self.blocks), self.out[-1]):
            zero_init(linear)  # an untrained network predicts the linear prediction itself

    def prefix(self, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor) -> TextCondition:
        """Read the text embeddings (B, D) of B captions; the tokens are not read."""
        unit_variance = embedding * self.config.embed_dim**0.5
        text = torch.where(empty[:, None], self.null_text.to(embedding.dtype), unit_variance)
        return TextCondition(self.text_in(text), self.centre(embedding, empty))

    def forward(self, x: Tensor, time: Tensor, prefix: TextCondition) -> Tensor:
        """Noised residuals (B, D) at times (B,) -> prediction (B, D)."""
        condition = self.time_in(timestep_embedding(time, self.config.width).to(x.dtype)) + prefix.vector  # (B, W)
        x = self.image_in(x)  # (B, W)
        for block in self.blocks:
            x = block(x, condition)  # (B, W)
        return self.out(x)  # (B, D)

    def centre(self, embedding: Tensor, empty: Tensor) -> Tensor:
        """The linear prediction (B, D) of the scaled image embedding; zero, the mean of all, for empty captions."""
        return self.regression(embedding).masked_fill(empty[:, None], 0)

    def forward_with_text(
        self, x: Tensor, time: Tensor, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor
    ) -> Tensor:
        """forward(x, time, prefix(...)), for training."""
        return self(x, time, self.prefix(embedding, tokens, mask, empty))
