"""The text's part of a prior's sequence: the tokens of a caption, then its text embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.layers import causal_mask, replace_empty


class CaptionReader(nn.Module):
    """Base of the causal transformers over [token features, text embedding, ...]: the layers that read a caption."""

    def __init__(self, embed_dim: int, text_width: int, context: int, width: int):
        super().__init__()
        self.encoding_in = nn.Linear(text_width, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.text_in = nn.Linear(embed_dim, width)
        self.null_encoding = nn.Parameter(torch.empty(text_width))
        self.null_text = nn.Parameter(torch.empty(embed_dim))

    def embed_text(self, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """The first part of B sequences (B, L + 1, W), and its mask (B, L + 1); empty captions are the learned null.

        Args:
            embedding: unit text embeddings (B, D).
            tokens: token features (B, L, W_text).
            mask: (B, L), False for padding.
            empty: (B,), True for captions that are dropped.
        """
        unit_variance = embedding * embedding.shape[1] ** 0.5
        embedding = torch.where(empty[:, None], self.null_text.to(embedding.dtype), unit_variance)  # (B, D)
        tokens, mask = replace_empty(tokens, mask, empty, self.null_encoding)
        x = self.encoding_in(tokens) + self.positions[: tokens.shape[1]]  # (B, L, W)
        x = torch.cat([x, self.text_in(embedding)[:, None]], dim=1)  # (B, L + 1, W)
        return x, F.pad(mask, (0, 1), value=True)


def causal_padding_mask(mask: Tensor) -> Tensor:
    """(B, N) -> (B, 1, N, N): each token attends to itself and to those before it, but not to padding."""
    return (mask[:, None] & causal_mask(mask.shape[1], mask.device))[:, None]
