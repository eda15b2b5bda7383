"""Read and write tokenizers of other projects' CLIPs: tokenizer.json, or vocab.json with merges.txt."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from unclip.clip.foreign.weight_files import check_fetched, read_json
from unclip.clip.text import TextConfig
from unclip.clip.tokenizer import END, START, Tokenizer
from unclip.clip.tokenizer_parts import WORDS
from unclip.errors import UserError

CLIP_WORDS = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
CLIP_NORMALIZER = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
)
REFUSAL = "this is not CLIP's own tokenizer: open it with transformers.AutoTokenizer, not CLIPTokenizer"


def read_tokenizer(folder: Path, config: TextConfig, cleaning: Any) -> Tokenizer | None:
    """Read the tokenizer in a folder; None if there is none. Raises UserError if it does not fit the text tower."""
    whole = folder / "tokenizer.json"
    vocabulary = folder / "vocab.json"
    merges = folder / "merges.txt"
    if whole.is_file():
        tokenizer = Tokenizer.load(check_fetched(whole))
    elif vocabulary.is_file() and merges.is_file():
        tokenizer = Tokenizer(_build_clip_tokenizer(check_fetched(vocabulary), check_fetched(merges)))
    else:
        return None
    if cleaning:
        if cleaning == "lower":  # open_clip's SimpleTokenizer splits cleaned text without normalising it again
            tokenizer.core.normalizer = None
            tokenizer.core.pre_tokenizer = CLIP_WORDS
        tokenizer = Tokenizer(tokenizer.core, cleaning)
    for settings in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        if settings.is_file():
            tokenizer.pad_with(read_json(settings).get("pad_token"))
    check_tokenizer(tokenizer, config, folder)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, config: TextConfig, folder: Path) -> None:
    """Raise UserError for a tokenizer that does not fit the text tower."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, but the text tower has {config.vocab_size}; "
            "put the tokenizer there that this CLIP was trained with"
        )
    if config.pooling == "eos" and tokenizer.end_id != config.eos_id:
        raise UserError(
            f"the tokenizer in {folder} ends a caption with token {tokenizer.end_id}, but the text tower reads its "
            f"embedding at token {config.eos_id}; put the tokenizer there that this CLIP was trained with"
        )


def _build_clip_tokenizer(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    """Build OpenAI's tokenizer from its two files, as Hugging Face's CLIPTokenizer does."""
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token=END)
        core = tokenizers.Tokenizer(model)
        end: Any = (END, core.token_to_id(END))
        start: Any = (START, core.token_to_id(START))
        core.post_processor = processors.RobertaProcessing(end, start, False, False)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{vocabulary} and {merges} are not the files of a CLIP tokenizer ({error})") from error
    core.normalizer = CLIP_NORMALIZER
    core.pre_tokenizer = CLIP_WORDS
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([START, END])
    return core


def export_tokenizer(tokenizer: Tokenizer, context: int) -> dict[str, dict[str, Any]]:
    """The contents of tokenizer.json and tokenizer_config.json for transformers.

    There the tokenizer itself adds the start and the end. It also takes the text "<|endoftext|>" within a caption for
    the end, where ours takes it for text.
    """
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    if core.post_processor is None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}", special_tokens=[(START, tokenizer.start_id), (END, tokenizer.end_id)]
        )
    if core.normalizer is None:  # ours cleans text beforehand; the library can do a part of that
        core.normalizer = CLIP_NORMALIZER
    start, end, pad = (core.id_to_token(i) for i in (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id))
    names = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **names}
    return {"tokenizer.json": _refuse_clip_tokenizer(json.loads(core.to_str())), "tokenizer_config.json": settings}


def _refuse_clip_tokenizer(values: dict[str, Any]) -> dict[str, Any]:
    """Make transformers' CLIPTokenizer refuse a tokenizer.json that splits words differently from CLIP.

    CLIPTokenizer reads only the vocabulary and the merges, and always splits words as CLIP does, so it would silently
    give other token ids. The list of merges may begin with a version, as in merges.txt. The tokenizers library skips
    it, but CLIPTokenizer takes it for a merge, and its error shows our message. No-break spaces make the message one
    token.
    """
    model = values["model"]
    splits_as_clip = json.dumps(WORDS)[1:-1] in json.dumps(values["pre_tokenizer"])
    is_clip_tokenizer = model.get("end_of_word_suffix") == "</w>" and splits_as_clip
    if "merges" in model and not is_clip_tokenizer:
        refusal = f"#version: {REFUSAL}".replace(" ", "\N{NO-BREAK SPACE}")
        model["merges"] = [f"{refusal} .", *(" ".join(pair) for pair in model["merges"])]
    return values
