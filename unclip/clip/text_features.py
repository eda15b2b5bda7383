"""Text features: a caption as CLIP reads it. The prior and the decoder take captions in this form only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unclip.clip.model import CLIP
from unclip.clip.tokenizer import Tokenizer
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class TextFeatures(TensorBatch):
    """Features of N captions."""

    embedding: Tensor
    """Text embeddings (N, D), unit norm."""
    tokens: Tensor
    """Token features (N, L, W), after the final LayerNorm, before the projection."""
    mask: Tensor
    """(N, L), True for tokens of the caption, False for padding."""
    empty: Tensor
    """(N,), True for an empty caption, in whose place a model puts its learned null."""
    negative: "TextFeatures | None" = None
    """Features of N captions that guidance leads away from; None for the learned null."""

    def drop(self, dropped: Tensor) -> "TextFeatures":
        """Mark the captions where `dropped` (N,) is True as empty too."""
        return replace(self, empty=self.empty | dropped)

    def null(self) -> "TextFeatures":
        """The other half of guidance: the negative captions, or else all N captions marked as empty."""
        return replace(self, empty=torch.ones_like(self.empty)) if self.negative is None else self.negative

    @classmethod
    def of_embeddings(cls, embeddings: Tensor) -> "TextFeatures":
        """Text embeddings (N, D) alone, for a CLIP whose token features are not at hand: each is its only token."""
        mask = torch.ones(len(embeddings), 1, dtype=torch.bool, device=embeddings.device)
        return cls(embeddings, embeddings[:, None], mask, ~mask[:, 0])


def encode_captions(clip: CLIP, tokenizer: Tokenizer, captions: Sequence[str]) -> TextFeatures:
    """Encode captions with a CLIP on its device, each distinct caption once. Captions without a word are empty.

    Warns of captions that are cut. Raises UserError for text that is not valid Unicode.
    """
    row_of = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    device = clip.logit_scale.device
    token_ids = tokenizer.encode(list(row_of), clip.config.text.context)
    distinct = encode_token_ids(clip, token_ids.to(device))
    distinct = distinct.drop(torch.tensor([not caption.strip() for caption in row_of], device=device))
    return distinct[torch.tensor([row_of[caption] for caption in captions], device=device)]


def encode_token_ids(clip: CLIP, token_ids: Tensor) -> TextFeatures:
    """Encode tokenised captions (N, L) that are on the CLIP's device."""
    embedding, tokens = clip.encode_text(token_ids)
    empty = torch.zeros(len(token_ids), dtype=torch.bool, device=token_ids.device)
    return TextFeatures(embedding, tokens, clip.text.mask(token_ids), empty)
