"""The network of the diffusion prior (Ramesh et al. 2022, section 2.2): a causal transformer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.fields import bounded, check, from_data
from unclip.layers import Block, KeyValue, causal_mask, init_transformer, timestep_embedding, zero_init
from unclip.prior.caption_reader import CaptionReader, causal_padding_mask


@dataclass(frozen=True)
class PriorConfig:
    embed_dim: int = from_data(0, 0, 16_384)
    """Dimension of CLIP's embeddings."""
    text_width: int = from_data(0, 0, 16_384)
    """Width of CLIP's token features."""
    context: int = from_data(0, 0, 4096)
    """CLIP's longest caption in tokens."""
    width: int = bounded(128, 2, 16_384)
    """Width of the transformer."""
    layers: int = bounded(4, 1, 256)
    """Number of transformer blocks."""
    heads: int = bounded(4, 1, 256)
    """Attention heads; they divide the width."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.width % self.heads:
            yield "heads", f"divide the width {self.width}"


class Prefix(NamedTuple):
    """The text's part of the sequence, which is the same at every timestep, so that it is computed once per caption."""

    past: list[KeyValue]  # each layer's keys and values, both (B, heads, L + 1, W / heads)
    mask: Tensor  # (B, L + 1), False for padding
    centre: Tensor  # (B, D), the scaled image embedding that is linearly likely given the text

    def select(self, rows: Tensor) -> "Prefix":
        """The prefix of the captions with these numbers, each as often as it is named."""
        return Prefix([(keys[rows], values[rows]) for keys, values in self.past], self.mask[rows], self.centre[rows])


class TextRegression(nn.Module):
    """Predicts the scaled image embedding from the text embedding by ridge regression; fitted, not trained.

    CLIP's space is close to linear: "light" moves the images of most classes the same way. The transformer need not
    learn caption by caption what this prediction explains, and a pair of words that it never saw still lands where it
    belongs.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(dim, dim))
        self.register_buffer("bias", torch.zeros(dim))

    def fit(self, text: Tensor, images: Tensor, ridge: float = 0.01) -> None:
        """Fit to unit text embeddings (N, D) and scaled image embeddings (N, D).

        `ridge` is added to the variance of the text embeddings' coordinates, in units of 1 / D, their size.
        """
        text = text.cpu().double()  # not every device has float64
        images = images.cpu().double()
        x = text - text.mean(dim=0)
        y = images - images.mean(dim=0)
        covariance = x.T @ x / len(x) + ridge / x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(covariance, x.T @ y / len(x)).T
        self.weight.copy_(weight)
        self.bias.copy_(images.mean(dim=0) - weight @ text.mean(dim=0))

    def forward(self, text: Tensor) -> Tensor:
        return F.linear(text, self.weight, self.bias)


class PriorTransformer(CaptionReader):
    """A causal transformer over [token features, text embedding, timestep, noised image embedding, learned query].

    It works on residuals: the difference of a scaled image embedding to its linear prediction from the text,
    `Prefix.centre`. Its output at the query is the prediction. As the text stands before the timestep under a causal
    mask, its keys and values do not depend on t.
    """

    def __init__(self, config: PriorConfig):
        check(config)
        width = config.width
        super().__init__(config.embed_dim, config.text_width, config.context, width)
        self.config = config
        self.regression = TextRegression(config.embed_dim)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.image_in = nn.Linear(config.embed_dim, width)
        self.query = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm_final = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.embed_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Zero output: an untrained network predicts the linear prediction itself."""
        for parameter in (self.positions, self.null_encoding, self.null_text, self.query):
            nn.init.normal_(parameter, std=0.02)
        init_transformer(self.blocks)
        zero_init(self.out)

    def prefix(self, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor) -> Prefix:
        """Read B captions, see `embed_text`. The linear prediction of empty ones is the mean of all images."""
        x, mask = self.embed_text(embedding, tokens, mask, empty)
        attention_mask = causal_padding_mask(mask)
        past = []
        for block in self.blocks:
            x, kv = block(x, attention_mask)
            past.append(kv)
        return Prefix(past, mask, self.centre(embedding, empty))

    def forward(self, x: Tensor, time: Tensor, prefix: Prefix) -> Tensor:
        """Noised residuals (B, D) at times (B,) -> prediction (B, D)."""
        x = self._embed_image(x, time)  # (B, 3, W)
        before = prefix.mask[:, None].expand(-1, 3, -1)  # (B, 3, L + 1)
        after = causal_mask(3, x.device).expand(x.shape[0], -1, -1)  # (B, 3, 3)
        mask = torch.cat([before, after], dim=2)[:, None]  # (B, 1, 3, L + 4)
        for block, past in zip(self.blocks[:-1], prefix.past[:-1], strict=True):
            x, _ = block(x, mask, past)  # (B, 3, W)
        x, _ = self.blocks[-1](x, mask[:, :, 2:], prefix.past[-1], at=2)  # (B, 1, W)
        return self.out(self.norm_final(x[:, 0]))  # (B, D)

    def centre(self, embedding: Tensor, empty: Tensor) -> Tensor:
        """The linear prediction (B, D) of the scaled image embedding; zero, the mean of all, for empty captions."""
        return self.regression(embedding).masked_fill(empty[:, None], 0)

    def forward_with_text(
        self, x: Tensor, time: Tensor, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor
    ) -> Tensor:
        """forward(x, time, prefix(...)) in one pass, for training, where every caption meets one time only."""
        text, mask = self.embed_text(embedding, tokens, mask, empty)
        x = torch.cat([text, self._embed_image(x, time)], dim=1)  # (B, L + 4, W)
        mask = causal_padding_mask(F.pad(mask, (0, 3), value=True))  # (B, 1, L + 4, L + 4)
        for block in self.blocks[:-1]:
            x, _ = block(x, mask)  # (B, L + 4, W)
        x, _ = self.blocks[-1](x, mask[:, :, -1:], at=-1)  # (B, 1, W)
        return self.out(self.norm_final(x[:, 0]))  # (B, D)

    def _embed_image(self, x: Tensor, time: Tensor) -> Tensor:
        """The sequence's second part, which depends on the time: timestep, noised residual, query (B, 3, W)."""
        time = self.time_in(timestep_embedding(time, self.config.width).to(x.dtype))  # (B, W)
        query = self.query.expand(x.shape[0], -1).to(time.dtype)
        return torch.stack([time, self.image_in(x), query], dim=1)
