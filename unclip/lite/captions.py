"""Captions as an exported CLIP reads them."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from unclip.caption_cleaning import Cleaning, clean_caption
from unclip.errors import UserError
from unclip.lite.networks import Networks


@dataclass(frozen=True)
class Features:
    """Features of N captions, as in `unclip.clip.text_features`."""

    embedding: np.ndarray
    """(N, D), unit norm."""
    tokens: np.ndarray
    """(N, L, W)."""
    mask: np.ndarray
    """bool (N, L)."""
    empty: np.ndarray
    """bool (N,), True for an empty caption."""

    def __len__(self) -> int:
        return len(self.embedding)

    def __getitem__(self, rows: Any) -> "Features":
        return Features(*(getattr(self, item.name)[rows] for item in fields(self)))

    def with_nulls(self) -> "Features":
        """These captions, and the same once more, marked as empty."""
        twice = self[np.tile(np.arange(len(self)), 2)]
        empty = np.concatenate([self.empty, np.ones_like(self.empty)])
        return Features(twice.embedding, twice.tokens, twice.mask, empty)


class CaptionEncoder:
    """Tokenises captions, and encodes each distinct one once."""

    def __init__(self, folder: Path, description: dict[str, Any], networks: Networks):
        values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        self.cleaning: Cleaning = values.pop("cleaning", "")
        self.core = tokenizers.Tokenizer.from_str(json.dumps(values))
        self.core.no_padding()
        self.core.no_truncation()
        is_ours = self.core.post_processor is None
        self.core.encode_special_tokens = is_ours or bool(self.cleaning)  # as in unclip.clip.tokenizer
        self.context: int = description["context"]
        self.special: dict[str, int] = description["tokens"]
        self.networks = networks

    def __call__(self, captions: Sequence[str]) -> Features:
        distinct = list(dict.fromkeys(captions))
        token_ids = np.array([self._token_ids(caption) for caption in distinct], dtype=np.int64)
        empty = np.array([not caption.strip() for caption in distinct])
        embedding, tokens, mask = self.networks("text", token_ids)
        return Features(embedding, tokens, mask, empty)[[distinct.index(caption) for caption in captions]]

    def _token_ids(self, caption: str) -> list[int]:
        """Start, tokens, end and padding, as many as the text tower reads."""
        if self.cleaning:
            caption = clean_caption(caption, self.cleaning)
        try:
            token_ids = self.core.encode(caption, add_special_tokens=False).ids
        except (UnicodeError, TypeError) as error:
            raise UserError(f"caption {caption!r} is not valid Unicode text") from error
        limit = self.context - 2
        if len(token_ids) > limit:
            warnings.warn(f"caption of {len(token_ids)} tokens is cut to the {limit} that fit", stacklevel=4)
        token_ids = [self.special["start"], *token_ids[:limit], self.special["end"]]
        return token_ids + [self.special["pad"]] * (self.context - len(token_ids))
