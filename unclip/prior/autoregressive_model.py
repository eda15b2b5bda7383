"""The network of the autoregressive prior (Ramesh et al. 2022, section 2.2): a causal transformer over buckets."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.fields import bounded, check
from unclip.layers import Block, KeyValue, init_transformer, timestep_embedding, zero_init
from unclip.prior.caption_reader import CaptionReader, causal_padding_mask
from unclip.prior.model import PriorConfig


@dataclass(frozen=True)
class AutoregressiveConfig(PriorConfig):
    buckets: int = bounded(128, 2, 1024)
    """Most buckets of a number; the largest principal component has so many."""


class Past(NamedTuple):
    """The part of the sequence that has been read."""

    keys_values: list[KeyValue]  # each layer's, both (B, heads, P, W / heads)
    mask: Tensor  # (B, P), False for padding

    def select(self, rows: Tensor) -> "Past":
        """The past of the sequences with these numbers, each as often as it is named."""
        return Past([(keys[rows], values[rows]) for keys, values in self.keys_values], self.mask[rows])


class AutoregressiveTransformer(CaptionReader):
    """A causal transformer over [token features, text embedding, numbers 0, 1, 2, ...].

    At the text embedding it predicts the bucket of number 0, and at each number that of the next. A number enters as
    the rank of its bucket, from 0 to 1.
    """

    def __init__(self, config: AutoregressiveConfig):
        check(config)
        width = config.width
        super().__init__(config.embed_dim, config.text_width, config.context, width)
        self.config = config
        self.rank_in = nn.Linear(width, width)
        self.number_positions = nn.Parameter(torch.empty(config.embed_dim + 1, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm_final = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.buckets)
        for parameter in (self.positions, self.null_encoding, self.null_text, self.number_positions):
            nn.init.normal_(parameter, std=0.02)
        init_transformer(self.blocks)
        zero_init(self.out)  # an untrained network takes all buckets for equally likely, as the training values are

    def forward(self, ranks: Tensor, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor) -> Tensor:
        """Ranks (B, R - 1) of all numbers but the last, and captions -> logits (B, R, buckets) of all, in one pass."""
        text, mask = self.embed_text(embedding, tokens, mask, empty)  # (B, L + 1, W)
        x = torch.cat([text, self._embed_ranks(ranks, 0)], dim=1)  # (B, L + R, W)
        mask = causal_padding_mask(F.pad(mask, (0, ranks.shape[1]), value=True))
        for block in self.blocks:
            x, _ = block(x, mask)
        return self.out(self.norm_final(x[:, text.shape[1] - 1 :]))

    def prefix(self, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor) -> tuple[Tensor, Past]:
        """Read B captions: the logits (B, buckets) of number 0, and what `step` continues from."""
        x, mask = self.embed_text(embedding, tokens, mask, empty)
        attention_mask = causal_padding_mask(mask)
        kept = []
        for block in self.blocks:
            x, keys_values = block(x, attention_mask)
            kept.append(keys_values)
        return self.out(self.norm_final(x[:, -1])), Past(kept, mask)

    def step(self, rank: Tensor, number: int, past: Past) -> tuple[Tensor, Past]:
        """Read the rank (B,) of a number: the logits (B, buckets) of the next, and the longer past."""
        x = self._embed_ranks(rank[:, None], number)  # (B, 1, W)
        mask = F.pad(past.mask, (0, 1), value=True)
        kept = []
        for block, before in zip(self.blocks, past.keys_values, strict=True):
            x, keys_values = block(x, mask[:, None, None], before)
            kept.append(keys_values)
        return self.out(self.norm_final(x[:, 0])), Past(kept, mask)

    def _embed_ranks(self, ranks: Tensor, first: int) -> Tensor:
        """Ranks (B, R) of the numbers from the `first` on -> (B, R, W)."""
        waves = timestep_embedding(1000 * ranks.flatten(), self.config.width).unflatten(0, ranks.shape)
        positions = self.number_positions[first : first + ranks.shape[1]]
        return self.rank_in(waves.to(self.rank_in.weight.dtype)) + positions
