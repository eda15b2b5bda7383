"""The text tower: a causal transformer whose output at the end-of-text token is the caption's embedding."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.fields import bounded, from_data
from unclip.layers import Activation, Block, causal_mask, init_transformer


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int = from_data(0, 0, 2**20)
    """Entries of the tokenizer."""
    eos_id: int = from_data(1, 0, 2**20)
    """The end-of-text token."""
    pooling: Literal["eos", "argmax"] = from_data("eos")
    """Where the caption's embedding is read off: at the first end-of-text token, or at the first of the highest id, as
    OpenAI's code does, whose end-of-text token has the highest."""
    context: int = bounded(32, 3, 4096)
    """Longest caption in tokens, start and end included; longer ones are cut."""
    width: int = bounded(128, 2, 16_384)
    """Width of the transformer."""
    layers: int = bounded(3, 1, 256)
    """Number of transformer blocks."""
    heads: int = bounded(4, 1, 256)
    """Attention heads; they divide the width."""
    activation: Activation = "gelu"
    """Non-linearity of the MLPs; OpenAI's weights need quick_gelu."""
    mlp_ratio: float = bounded(4.0, 0.1, 64)
    """Width of the MLPs' hidden layer over that of the transformer."""
    norm_eps: float = bounded(1e-5, 1e-12, 1)
    """What the LayerNorms add to the variance."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.width % self.heads:
            yield "heads", f"divide the width {self.width}"


class TextTransformer(nn.Module):
    def __init__(self, config: TextConfig, embed_dim: int):
        super().__init__()
        if config.eos_id >= max(config.vocab_size, 2):
            raise UserError(f"eos_id must be below the vocab_size {config.vocab_size}, not {config.eos_id}")
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, config.activation, config.norm_eps)
            for _ in range(config.layers)
        )
        self.norm_final = nn.LayerNorm(config.width, config.norm_eps)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Tokens 0.02 and positions 0.01 as CLIP; the projection keeps the variance of a normalised input."""
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.projection.weight, std=self.config.width**-0.5)
        init_transformer(self.blocks)

    def end_of_text(self, ids: Tensor) -> Tensor:
        """Index (B,) of the token where the embedding is read off; what follows it is padding."""
        return ids.argmax(dim=1) if self.config.pooling == "argmax" else (ids == self.config.eos_id).int().argmax(dim=1)

    def mask(self, ids: Tensor) -> Tensor:
        """(B, L), True for the caption's tokens, start and end included, False for padding."""
        return torch.arange(ids.shape[1], device=ids.device) <= self.end_of_text(ids)[:, None]

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) -> embeddings (B, D), not yet of unit norm, and encodings of every token (B, L, W).

        The encodings are taken after the final LayerNorm, before the projection. Padding stands to the right, where a
        causal mask hides it.
        """
        x = self._before_last(ids)  # (B, L, W)
        x, _ = self.blocks[-1](x, causal_mask(ids.shape[1], ids.device))  # (B, L, W)
        x = self.norm_final(x)  # (B, L, W)
        pooled = x[torch.arange(len(x), device=x.device), self.end_of_text(ids)]  # (B, W)
        return self.projection(pooled), x  # (B, D), (B, L, W)

    def embed(self, ids: Tensor) -> Tensor:
        """The embeddings (B, D) alone, for less: of the last block's tokens only the end of text is computed."""
        x = self._before_last(ids)  # (B, L, W)
        x, _ = self.blocks[-1](x, self.mask(ids)[:, None, None], at=self.end_of_text(ids))  # (B, 1, W)
        return self.projection(self.norm_final(x[:, 0]))  # (B, D)

    def _before_last(self, ids: Tensor) -> Tensor:
        """What the last block is given, (B, L, W)."""
        x = self.tokens(ids) + self.positions[: ids.shape[1]]  # (B, L, W)
        mask = causal_mask(ids.shape[1], ids.device)  # (L, L)
        for block in self.blocks[:-1]:
            x, _ = block(x, mask)  # (B, L, W)
        return x
