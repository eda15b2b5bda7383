"""Byte-level BPE: trained on the captions, saved with the pipeline; encodes any UTF-8 text."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from unclip.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"


class Tokenizer:
    """Captions -> padded ids [start, tokens, end, end, ...]. Case and runs of white space do not matter."""

    def __init__(self, core: tokenizers.Tokenizer):
        self.core = core
        self.core.encode_special_tokens = True  # a caption that contains "<|endoftext|>" is text like any other
        self.start_id, self.end_id = core.token_to_id(START), core.token_to_id(END)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 1024) -> "Tokenizer":
        """Learn merges from captions. The 256 bytes are always in the vocabulary, so that nothing is unknown."""
        core = tokenizers.Tokenizer(models.BPE())
        core.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
             normalizers.Strip()]
        )  # fmt: skip
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        core.decoder = decoders.ByteLevel()
        core.train_from_iterator(
            captions,
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=[START, END],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        return cls(core)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read tokenizer.json. Raises UserError if it is missing or damaged."""
        try:
            return cls(tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is not a readable tokenizer ({error})") from error

    def to_json(self) -> str:
        return self.core.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        return self.core.get_vocab_size()

    def encode(self, captions: Sequence[str], context: int) -> Tensor:
        """Ids (B, L), L being the longest caption's length and at most `context`.

        A longer caption is cut at a token, with a warning. Raises UserError for text that is not valid Unicode.
        """
        rows = []
        for caption in captions:
            try:
                ids = self.core.encode(caption).ids
            except (UnicodeError, TypeError) as error:
                raise UserError(f"caption {caption!r} is not valid Unicode text") from error
            if len(ids) > context - 2:
                kept = self.decode(ids[: context - 2])
                warnings.warn(
                    f"caption of {len(ids)} tokens is cut to the {context - 2} that fit: {kept!r}", stacklevel=2
                )
            rows.append([self.start_id, *ids[: context - 2], self.end_id])
        length = max(map(len, rows))
        return torch.tensor([row + [self.end_id] * (length - len(row)) for row in rows])

    def decode(self, ids: Sequence[int]) -> str:
        return self.core.decode(list(ids)).strip()
