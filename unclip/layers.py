"""Layers that several parts share: the transformer block, the timestep embedding, the scaling of image embeddings."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.errors import UserError

Activation = Literal["gelu", "quick_gelu"]
KeyValue = tuple[Tensor, Tensor]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


FEW_KEYS = 80
"""Up to this many keys, plain matrix products are the faster attention on a CPU: forward and backward pass take a
third less time than PyTorch's fused kernel on two threads, and as much on one; with more keys one thread loses."""
REGISTER = 16
"""Numbers in a register of AVX-512. PyTorch's softmax is ten times slower along shorter rows."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention; on a CPU in float32, as its gradient is six times slower in bfloat16 there.

    Queries (B, heads, N, d), keys and values (B, heads, M, d), mask (N or 1, M) or (B, 1, N or 1, M), True where a
    query attends to a key; every query attends to at least one.
    """
    with torch.autocast("cpu", enabled=False):
        q, k, v = map(wide_on_cpu, (q, k, v))
        few = q.device.type == "cpu" and k.shape[2] <= FEW_KEYS
        return (attend_plainly if few else F.scaled_dot_product_attention)(q, k, v, mask)


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1), in batched products over all heads at once."""
    bias = q.new_zeros(1, 1) if mask is None else q.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
    if bias.ndim > 2:  # each sequence's own
        bias = bias.expand(*q.shape[:2], -1, -1).flatten(0, 1)  # (B heads, N or 1, M)
    scale = q.shape[-1] ** -0.5
    queries, keys, values = (x.flatten(0, 1) for x in (q, k, v))  # (B heads, N or M, d)
    if keys.shape[1] < REGISTER:  # scores transposed, (B heads, M, N)
        weights = torch.baddbmm(bias.mT, keys, queries.mT, alpha=scale).softmax(dim=1).mT
    else:
        weights = torch.baddbmm(bias, queries, keys.mT, alpha=scale).softmax(dim=2)  # (B heads, N, M)
    return torch.bmm(weights, values).unflatten(0, q.shape[:2])


class GroupNorm(nn.GroupNorm):
    """On a CPU in float32: it is four times slower in bfloat16 there."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(wide_on_cpu(x))


def at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 and float16 as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def wide_on_cpu(x: Tensor) -> Tensor:
    """bfloat16 as float32 where x is on a CPU, which has no fast code for all operations in it."""
    return x.float() if x.dtype == torch.bfloat16 and x.device.type == "cpu" else x


class StackedLinear(nn.Linear):
    """Several linear maps of one input, such as queries, keys and values, in one matrix product.

    `stacks` tells how many, since an optimiser that treats a matrix as a whole (Muon) must take each map alone.
    """

    def __init__(self, features: int, out: int, stacks: int):
        super().__init__(features, stacks * out)
        self.stacks = stacks


def split_heads(x: Tensor, stacks: int, heads: int) -> list[Tensor]:
    """(B, N, stacks W) -> a list of `stacks` tensors (B, heads, N, W/heads).

    The tensor is cut before it is permuted, so that the gradients are put together by one copy, not by two.
    """
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in x.chunk(stacks, dim=-1)]


class Attention(nn.Module):
    """Multi-head self-attention whose keys and values can be kept and extended."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = StackedLinear(width, width, stacks=3)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, past: KeyValue | None = None, at: int | Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Let all tokens of x (B, N, W) attend to `past` (P keys) and to x; with `at` only that token of each sequence.

        mask (..., N or 1, P + N) is True where a token attends.
        """
        if at is None:
            q, k, v = split_heads(self.qkv(x), 3, self.heads)  # (B, heads, N, W/heads)
        else:
            sizes = (x.shape[-1], 2 * x.shape[-1])
            w_q, w_kv = self.qkv.weight.split(sizes)
            b_q, b_kv = self.qkv.bias.split(sizes)
            [q] = split_heads(F.linear(token(x, at), w_q, b_q), 1, self.heads)  # (B, heads, 1, W/heads)
            k, v = split_heads(F.linear(x, w_kv, b_kv), 2, self.heads)
        if past is not None:
            past_k, past_v = past
            k = torch.cat([past_k, k], dim=2)
            v = torch.cat([past_v, v], dim=2)
        x = attend(q, k, v, mask)
        return self.out(x.transpose(1, 2).flatten(2)), (k, v)


def token(x: Tensor, at: int | Tensor) -> Tensor:
    """The token (B, 1, W) at an index of each sequence (B, N, W); the index is one for all, or (B,)."""
    return x[:, at, None] if isinstance(at, int) else x[torch.arange(x.shape[0], device=x.device), at, None]


class Block(nn.Module):
    """Pre-LN transformer block: x + attention(LN x), x + MLP(LN x)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        activation: Activation = "gelu",
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, norm_eps)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU() if activation == "gelu" else QuickGELU(),
            nn.Linear(hidden, width),
        )

    def forward(
        self, x: Tensor, mask: Tensor | None = None, past: KeyValue | None = None, at: int | Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:
        """(B, N, W) -> (B, N, W), and the keys and values to continue from.

        With `at`, an index or one for each sequence (B,), only that token is put out, (B, 1, W). Mostly one token of
        the last block's output is read, and it needs no more of the others than their keys and values.
        """
        h, kv = self.attention(self.norm1(x), mask, past, at)
        x = (x if at is None else token(x, at)) + h
        return x + self.mlp(self.norm2(x)), kv

    def init_weights(self, depth: int) -> None:
        """CLIP's initialisation: deviation width^-1/2, which keeps the variance of a normalised input at any width.

        A fixed 0.02 would starve narrow ones. Layers that write to the residual stream are scaled down by the square
        root of the number of such layers, so that the stream's variance does not grow with the depth. Biases are zero.
        """
        to_hidden, from_hidden = (layer for layer in self.mlp if isinstance(layer, nn.Linear))
        width = self.attention.out.in_features
        residual = (2 * depth) ** -0.5
        nn.init.normal_(self.attention.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.attention.out.weight, std=width**-0.5 * residual)
        nn.init.normal_(to_hidden.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(from_hidden.weight, std=width**-0.5 * residual)
        for linear in (self.attention.qkv, self.attention.out, to_hidden, from_hidden):
            nn.init.zeros_(linear.bias)


def init_transformer(blocks: nn.ModuleList) -> None:
    """Initialise a stack of `Block`s as CLIP does; see `Block.init_weights`."""
    for block in blocks:
        assert isinstance(block, Block)
        block.init_weights(depth=len(blocks))


def zero_init(layer: nn.Linear | nn.Conv2d) -> None:
    """Let a layer put out zeros."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """(N, N), True where token i attends to token j <= i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding (B, dim) of times (B,), which may be fractional (Vaswani et al. 2017; Ho et al. 2020)."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(max_period) * steps / half)
    angles = t[:, None].float() * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


def replace_empty(tokens: Tensor, mask: Tensor, empty: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Put the learned null (W,) in place of the tokens (B, L, W) of captions that are empty (B,). Returns tokens, mask.

    An empty caption becomes a single token, so that its length tells nothing.
    """
    is_first = torch.arange(mask.shape[1], device=mask.device) == 0
    tokens = torch.where(empty[:, None, None], null.to(tokens.dtype), tokens)
    return tokens, (mask & ~empty[:, None]) | (is_first & empty[:, None])


class EmbeddingScaler(nn.Module):
    """Shifts and scales CLIP embeddings so that each coordinate has zero mean and unit variance over the training data.

    The statistics are stored with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.full((dim,), 1 / math.sqrt(dim)))

    def fit(self, embeddings: Tensor) -> "EmbeddingScaler":
        """Store the mean and deviation of embeddings (N, D); each deviation is at least a twentieth of their mean."""
        std, mean = torch.std_mean(embeddings.float(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=0.05 * std.mean() + 1e-8))
        return self

    def scale(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.mean) / self.std
