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
    """Number of tokens of the tokenizer."""
    eos_id: int = from_data(1, 0, 2**20)
    """The end-of-text token."""
    pooling: Literal["eos", "argmax"] = from_data("eos")
    """Where the caption's embedding is read. eos: at the first end-of-text token. argmax: at the first token of the
    highest id, as in OpenAI's code, where the end-of-text token has the highest id."""
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
    """Width of the MLPs' hidden layer, as a multiple of the transformer's width."""
    norm_eps: float = bounded(1e-5, 1e-12, 1)
    """Added to the variance in LayerNorm."""

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
        """Use deviation 0.02 for tokens and 0.01 for positions, as CLIP does; keep the variance in the projection."""
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.projection.weight, std=self.config.width**-0.5)
        init_transformer(self.blocks)

    def end_of_text(self, token_ids: Tensor) -> Tensor:
        """Index (B,) of the token at which the caption's embedding is read. Everything after it is padding."""
        if self.config.pooling == "argmax":
            return token_ids.argmax(dim=1)
        return (token_ids == self.config.eos_id).int().argmax(dim=1)

    def mask(self, token_ids: Tensor) -> Tensor:
        """(B, L), True for the caption's tokens, start and end included, False for padding."""
        return torch.arange(token_ids.shape[1], device=token_ids.device) <= self.end_of_text(token_ids)[:, None]

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) -> embeddings (B, D), not yet of unit norm, and features of every token (B, L, W).

        The features are taken after the final LayerNorm, before the projection. Padding stands on the right, where the
        causal mask hides it from the caption's tokens.
        """
        x = self._before_last_block(token_ids)  # (B, L, W)
        x, _ = self.blocks[-1](x, causal_mask(token_ids.shape[1], token_ids.device))  # (B, L, W)
        x = self.norm_final(x)  # (B, L, W)
        pooled = x[torch.arange(x.shape[0], device=x.device), self.end_of_text(token_ids)]  # (B, W)
        return self.projection(pooled), x  # (B, D), (B, L, W)

    def embed(self, token_ids: Tensor) -> Tensor:
        """The embeddings (B, D) alone. The last block computes only the end-of-text token, which costs less."""
        x = self._before_last_block(token_ids)  # (B, L, W)
        mask = self.mask(token_ids)[:, None, None]  # (B, 1, 1, L)
        x, _ = self.blocks[-1](x, mask, at=self.end_of_text(token_ids))  # (B, 1, W)
        return self.projection(self.norm_final(x[:, 0]))  # (B, D)

    def _before_last_block(self, token_ids: Tensor) -> Tensor:
        """Input of the last block, (B, L, W)."""
        x = self.tokens(token_ids) + self.positions[: token_ids.shape[1]]  # (B, L, W)
        mask = causal_mask(token_ids.shape[1], token_ids.device)  # (L, L)
        for block in self.blocks[:-1]:
            x, _ = block(x, mask)  # (B, L, W)
        return x
