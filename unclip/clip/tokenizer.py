"""Byte-level BPE tokenizer: trained on the captions, saved with the pipeline, and able to encode any UTF-8 text."""

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from unclip.caption_cleaning import Cleaning, clean_caption
from unclip.clip.tokenizer_parts import check_tokenizer_parts
from unclip.errors import UserError, reason, shown
from unclip.store.sealed_json import read_json

START = "<|startoftext|>"
END = "<|endoftext|>"


class Tokenizer:
    """Captions -> padded token ids [start, tokens, end, padding ...]. Case and runs of white space do not matter."""

    def __init__(self, core: tokenizers.Tokenizer, cleaning: Cleaning = ""):
        self.core = core
        self.cleaning = cleaning
        padding = core.padding
        core.no_padding()
        core.no_truncation()  # `encode` does both
        is_ours = core.post_processor is None
        if is_ours or cleaning:
            core.encode_special_tokens = True  # "<|endoftext|>" within a caption is text like any other
        # a pretrained tokenizer adds its own start and end
        frame: list[Any] = [core.token_to_id(START), core.token_to_id(END)] if is_ours else core.encode("").ids
        if len(frame) != 2 or None in frame:
            raise UserError(f"the tokenizer puts {frame} around a caption; CLIP's puts a start and an end")
        self.start_id: int = frame[0]
        self.end_id: int = frame[1]
        self.pad_id = self.end_id
        if padding:
            self.pad_with(padding["pad_token"])

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 1024) -> "Tokenizer":
        """Learn merges from captions. The 256 bytes are always in the vocabulary, so that no text is unknown."""
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
            read_json(Path(path))  # refuses what is too large
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except BaseException as error:  # the library raises bare Exception, and its panics are BaseException
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            raise UserError(f"{path} is not a readable tokenizer ({reason(error)})") from error

    @classmethod
    def from_json(cls, content: str) -> "Tokenizer":
        """The tokenizer of which `to_json` gives this content. Raises UserError for parts that ours do not have."""
        values = json.loads(content)
        cleaning = values.pop("cleaning", "")
        if cleaning not in get_args(Cleaning):
            raise UserError(f"its cleaning is {shown(cleaning)}; expected one of {get_args(Cleaning)}")
        check_tokenizer_parts(values)
        return cls(tokenizers.Tokenizer.from_str(json.dumps(values)), cleaning)

    def __reduce__(self):
        """Copy and pickle as JSON: the library's own copies forget `encode_special_tokens`."""
        return Tokenizer.from_json, (self.to_json(),)

    def pad_with(self, token: str | dict | None) -> None:
        """Adopt the padding token that a pretrained tokenizer's files name. None changes nothing."""
        text = token["content"] if isinstance(token, dict) else token
        pad_id = None if text is None else self.core.token_to_id(text)
        if pad_id is not None:
            self.core.enable_padding(pad_id=pad_id, pad_token=text)  # so that it is saved too
            self.pad_id = pad_id

    def to_json(self) -> str:
        """The content of tokenizer.json, in the format of the tokenizers library.

        If captions are cleaned first, an additional field says how; the library then refuses the file, as it would
        otherwise skip the cleaning.
        """
        content = self.core.to_str(pretty=True)
        if self.cleaning:
            content = content[:-2] + f',\n  "cleaning": "{self.cleaning}"\n}}'
        return content

    @property
    def vocab_size(self) -> int:
        """The number of token ids: one more than the largest, as a vocabulary may have gaps."""
        return max(*self.core.get_vocab().values(), self.start_id, self.end_id, self.pad_id) + 1

    def encode(self, captions: Sequence[str], context: int) -> Tensor:
        """Token ids (B, L), where L is the length of the longest caption, at most `context`.

        Longer captions are cut at a token, with one warning. Raises UserError for text that is not valid Unicode.
        """
        limit = context - 2
        rows = [self._token_ids(caption) for caption in captions]
        too_long = [row for row in rows if len(row) > limit]
        if too_long:
            self._warn_of_cut(too_long, limit)
        rows = [[self.start_id, *row[:limit], self.end_id] for row in rows]
        length = max(map(len, rows))
        return torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows], dtype=torch.long, device="cpu")

    def _warn_of_cut(self, rows: list[list[int]], limit: int) -> None:
        longest = max(rows, key=len)
        if len(rows) == 1:
            message = f"caption of {len(longest)} tokens is cut to the {limit} that fit"
        else:
            message = f"{len(rows)} captions are cut to the {limit} tokens that fit, the longest, of {len(longest)}"
        remedy = "a CLIP trained with a larger --model.text.context reads more"
        warnings.warn(f"{message}: {self.decode(longest[:limit])!r}; {remedy}", stacklevel=3)

    def _token_ids(self, caption: str) -> list[int]:
        try:
            if self.cleaning:
                caption = clean_caption(caption, self.cleaning)
            return self.core.encode(caption, add_special_tokens=False).ids
        except UserError:
            raise
        except (UnicodeError, TypeError) as error:
            raise UserError(f"caption {caption!r} is not valid Unicode text") from error
        except Exception as error:  # the library raises bare Exception, as for a byte that a vocabulary lacks
            raise UserError(f"caption {caption!r} cannot be written in the tokenizer's vocabulary ({error})") from error

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.core.decode(list(token_ids)).replace("</w>", " ").strip()  # CLIP marks the end of a word by </w>
