"""Byte-level BPE: trained on the captions, saved with the pipeline; encodes any UTF-8 text."""

import html
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from unclip.errors import UserError, reason

START, END = "<|startoftext|>", "<|endoftext|>"
Cleaning = Literal["", "whitespace", "lower"]
"""What is done to a caption first: nothing; what `clean` does; or that, and lower case."""
FTFY_LEAVES = re.compile(r"[ -%'-~\t\r\n]*")
"""Text that ftfy cannot change, once HTML's escapes are undone and white space is evened: ASCII without "&"."""


class Tokenizer:
    """Captions -> padded ids [start, tokens, end, padding ...]. Case and runs of white space do not matter."""

    def __init__(self, core: tokenizers.Tokenizer, cleaning: Cleaning = ""):
        self.core, self.cleaning = core, cleaning
        padding = core.padding
        core.no_padding()
        core.no_truncation()  # `encode` does both itself
        own = core.post_processor is None
        if own or cleaning:
            core.encode_special_tokens = True  # a caption that contains "<|endoftext|>" is text like any other
        # a pretrained one says itself what it puts around a caption
        frame = [core.token_to_id(START), core.token_to_id(END)] if own else core.encode("").ids
        if len(frame) != 2 or None in frame:
            raise UserError(f"the tokenizer puts {frame} around a caption; CLIP's puts a start and an end")
        self.start_id, self.end_id = frame
        self.pad_id = self.end_id
        if padding:
            self.pad_with(padding["pad_token"])

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
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            cleaning = values.pop("cleaning", "")
            return cls(tokenizers.Tokenizer.from_str(json.dumps(values)), cleaning)
        except BaseException as error:  # the library raises bare Exception, and panics with less
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            raise UserError(f"{path} is not a readable tokenizer ({reason(error)})") from error

    def pad_with(self, token: str | dict | None) -> None:
        """Take over the padding that a pretrained tokenizer's files name, if they name any."""
        token = token["content"] if isinstance(token, dict) else token
        if token is not None and (pad_id := self.core.token_to_id(token)) is not None:
            self.core.enable_padding(pad_id=pad_id, pad_token=token)  # noted, so that it is saved too
            self.pad_id = pad_id

    def to_json(self) -> str:
        """tokenizer.json of the tokenizers library. Where captions are cleaned first a field of ours says how, and that
        library refuses the file rather than leave the cleaning out."""
        content = self.core.to_str(pretty=True)
        return content[:-2] + f',\n  "cleaning": "{self.cleaning}"\n}}' if self.cleaning else content

    @property
    def vocab_size(self) -> int:
        return self.core.get_vocab_size()

    def encode(self, captions: Sequence[str], context: int) -> Tensor:
        """Ids (B, L), L being the longest caption's length and at most `context`.

        Longer captions are cut at a token, with one warning. Raises UserError for text that is not valid Unicode.
        """
        rows, fit = [self._ids(caption) for caption in captions], context - 2
        long = [row for row in rows if len(row) > fit]
        if long:
            longest = max(long, key=len)
            kept = repr(self.decode(longest[:fit]))
            one = f"caption of {len(longest)} tokens is cut to the {fit} that fit"
            several = f"{len(long)} captions are cut to the {fit} tokens that fit, the longest, of {len(longest)}"
            more = "a CLIP trained with a larger --model.text.context reads more"
            warnings.warn(f"{one if len(long) == 1 else several}: {kept}; {more}", stacklevel=2)
        rows = [[self.start_id, *row[:fit], self.end_id] for row in rows]
        length = max(map(len, rows))
        return torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows])

    def _ids(self, caption: str) -> list[int]:
        try:
            caption = clean(caption, self.cleaning) if self.cleaning else caption
            return self.core.encode(caption, add_special_tokens=False).ids
        except UserError:
            raise
        except (UnicodeError, TypeError) as error:
            raise UserError(f"caption {caption!r} is not valid Unicode text") from error
        except Exception as error:  # the library raises bare Exception, as for a byte that a vocabulary lacks
            raise UserError(f"caption {caption!r} cannot be written in the tokenizer's vocabulary ({error})") from error

    def decode(self, ids: Sequence[int]) -> str:
        return self.core.decode(list(ids)).replace("</w>", " ").strip()  # CLIP's mark of a word's end


def clean(caption: str, cleaning: Cleaning) -> str:
    """Text as open_clip and OpenAI clean it: ftfy mends broken encodings and makes quotes straight, HTML's escapes are
    undone twice, and one space stands between words.

    Raises UserError for a caption that ftfy might change where it is not installed.
    """
    try:
        import ftfy  # only these tokenizers need it
    except ImportError as error:
        if not FTFY_LEAVES.fullmatch(caption):
            raise UserError(f"caption {caption!r} is cleaned with ftfy for this CLIP; pip install ftfy") from error
    else:
        caption = ftfy.fix_text(caption)
    caption = " ".join(html.unescape(html.unescape(caption)).split())
    return caption.lower() if cleaning == "lower" else caption
