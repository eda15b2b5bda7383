"""Byte-level BPE: trained on the captions, saved with the pipeline; encodes any UTF-8 text."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from unclip.errors import UserError, reason

START, END = "<|startoftext|>", "<|endoftext|>"


class Tokenizer:
    """Captions -> padded ids [start, tokens, end, padding ...]. Case and runs of white space do not matter."""

    def __init__(self, core: tokenizers.Tokenizer):
        self.core = core
        padding = core.padding
        core.no_padding()
        core.no_truncation()  # `encode` does both itself
        if core.post_processor is None:  # one of our own
            core.encode_special_tokens = True  # a caption that contains "<|endoftext|>" is text like any other
            frame = [core.token_to_id(START), core.token_to_id(END)]
        else:  # a pretrained one says itself what it puts around a caption
            frame = core.encode("").ids
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
            return cls(tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
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

    def framed(self) -> tokenizers.Tokenizer:
        """The tokenizer as other programs use it, which itself puts the start and the end around a caption.

        They take the text "<|endoftext|>" within a caption for its end, where ours takes it for text.
        """
        core = tokenizers.Tokenizer.from_str(self.to_json())
        if core.post_processor is None:
            core.post_processor = processors.TemplateProcessing(
                single=f"{START} $A {END}", special_tokens=[(START, self.start_id), (END, self.end_id)]
            )
        return core

    def huggingface_config(self, context: int) -> dict[str, Any]:
        """tokenizer_config.json, for transformers."""
        start, end, pad = (self.core.id_to_token(i) for i in (self.start_id, self.end_id, self.pad_id))
        names = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
        return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **names}

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
                ids = self.core.encode(caption, add_special_tokens=False).ids
            except (UnicodeError, TypeError) as error:
                raise UserError(f"caption {caption!r} is not valid Unicode text") from error
            except Exception as error:  # the library raises bare Exception, as for a byte that a vocabulary lacks
                raise UserError(f"caption {caption!r} cannot be told by the tokenizer ({error})") from error
            if len(ids) > context - 2:
                kept = self.decode(ids[: context - 2])
                warnings.warn(
                    f"caption of {len(ids)} tokens is cut to the {context - 2} that fit: {kept!r}", stacklevel=2
                )
            rows.append([self.start_id, *ids[: context - 2], self.end_id])
        length = max(map(len, rows))
        return torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows])

    def decode(self, ids: Sequence[int]) -> str:
        return self.core.decode(list(ids)).replace("</w>", " ").strip()  # CLIP's mark of a word's end


def from_vocabulary(vocabulary: Path, merges: Path) -> Tokenizer:
    """OpenAI's tokenizer (Radford et al. 2021) of its two files, as Hugging Face's CLIPTokenizer builds it."""
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token=END)
        core = tokenizers.Tokenizer(model)
        start_id, end_id = core.token_to_id(START), core.token_to_id(END)
        core.post_processor = processors.RobertaProcessing((END, end_id), (START, start_id), False, False)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{vocabulary} and {merges} are not the files of a CLIP tokenizer ({error})") from error
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([START, END])
    return Tokenizer(core)
