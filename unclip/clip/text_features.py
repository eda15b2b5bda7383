"""Captions as CLIP reads them: the one type in which they reach the prior and the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unclip.clip.model import CLIP
from unclip.clip.tokenizer import Tokenizer
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class TextFeatures(TensorBatch):
    """N captions."""

    embedding: Tensor
    """Text embeddings (N, D), unit norm."""
    tokens: Tensor
    """Token features (N, L, W), after the final LayerNorm, before the projection."""
    mask: Tensor
    """(N, L), False for padding."""
    empty: Tensor
    """(N,), True for a caption that stands for none: a model puts its learned null in its place."""

    def drop(self, which: Tensor) -> "TextFeatures":
        """The same with those of `which` (N,) empty too."""
        return replace(self, empty=self.empty | which)

    def null(self) -> "TextFeatures":
        """As many empty captions: the unconditional half of guidance."""
        return replace(self, empty=torch.ones_like(self.empty))


def encode_captions(clip: CLIP, tokenizer: Tokenizer, captions: Sequence[str]) -> TextFeatures:
    """Put captions through a CLIP, each distinct one once, on the CLIP's device. Those without a word are empty.

    Raises UserError for text that is not valid Unicode; warns of captions that are cut.
    """
    row_of = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    device = clip.logit_scale.device
    distinct = encode_token_ids(clip, tokenizer.encode(list(row_of), clip.config.text.context).to(device))
    distinct = distinct.drop(torch.tensor([not caption.strip() for caption in row_of], device=device))
    return distinct[torch.tensor([row_of[caption] for caption in captions], device=device)]


def encode_token_ids(clip: CLIP, ids: Tensor) -> TextFeatures:
    """Put captions through a CLIP that are tokenised already: ids (N, L), on the CLIP's device."""
    text, encodings = clip.encode_text(ids)
    return TextFeatures(
        text, encodings, clip.text.mask(ids), torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    )
