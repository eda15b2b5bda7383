"""Tokenizers of other projects' CLIPs: tokenizer.json, or vocab.json with merges.txt."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from unclip.clip.foreign.weight_files import check_fetched, read_json
from unclip.clip.text import TextConfig
from unclip.clip.tokenizer import END, START, Tokenizer
from unclip.errors import UserError

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What OpenAI's tokenizer takes for a word (Radford et al. 2021)."""
CLIP_WORDS = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
CLIP_NORMALIZER = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
)
REFUSAL = "this is not CLIP's own tokenizer: open it with transformers.AutoTokenizer, not CLIPTokenizer"


def read_tokenizer(folder: Path, config: TextConfig, cleaning: str) -> Tokenizer | None:
    """The tokenizer in a folder, if there is one. Raises UserError if it does not go with the text tower."""
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        tokenizer = Tokenizer.load(check_fetched(whole))
    elif vocabulary.is_file() and merges.is_file():
        tokenizer = Tokenizer(_from_vocabulary(check_fetched(vocabulary), check_fetched(merges)))
    else:
        return None
    if cleaning:
        if cleaning == "lower":  # open_clip's SimpleTokenizer, whose words come from cleaned text as they are
            tokenizer.core.normalizer, tokenizer.core.pre_tokenizer = None, CLIP_WORDS
        tokenizer = Tokenizer(tokenizer.core, cleaning)
    for settings in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        if settings.is_file():
            tokenizer.pad_with(read_json(settings).get("pad_token"))
    check_tokenizer(tokenizer, config, folder)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, config: TextConfig, folder: Path) -> None:
    """Raise UserError for a tokenizer that does not go with the text tower."""
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


def _from_vocabulary(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    """OpenAI's tokenizer of its two files, as Hugging Face's CLIPTokenizer builds it."""
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token=END)
        core = tokenizers.Tokenizer(model)
        start_id, end_id = core.token_to_id(START), core.token_to_id(END)
        core.post_processor = processors.RobertaProcessing((END, end_id), (START, start_id), False, False)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{vocabulary} and {merges} are not the files of a CLIP tokenizer ({error})") from error
    core.normalizer, core.pre_tokenizer, core.decoder = CLIP_NORMALIZER, CLIP_WORDS, decoders.ByteLevel()
    core.add_special_tokens([START, END])
    return core


def export_tokenizer(tokenizer: Tokenizer, context: int) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json for transformers.

    There the tokenizer itself puts the start and the end around a caption, and takes the text "<|endoftext|>" within
    a caption for its end, where ours takes it for text.
    """
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    if core.post_processor is None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}", special_tokens=[(START, tokenizer.start_id), (END, tokenizer.end_id)]
        )
    if core.normalizer is None:  # text is cleaned before; what of that can be done here is
        core.normalizer = CLIP_NORMALIZER
    start, end, pad = (core.id_to_token(i) for i in (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id))
    names = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **names}
    return {"tokenizer.json": _guarded(json.loads(core.to_str())), "tokenizer_config.json": settings}


def _guarded(values: dict[str, Any]) -> dict[str, Any]:
    """Make transformers' CLIPTokenizer refuse a tokenizer.json whose words are not CLIP's.

    It takes nothing but the vocabulary and the merges, and splits text in CLIP's own way: other tokens, without a
    word. The list of merges may begin with a version, as merges.txt does, which the tokenizers library skips, and
    CLIPTokenizer takes for a merge: its error is then our line, for which no-break spaces make it one token.
    """
    model, their_words = values["model"], json.dumps(values["pre_tokenizer"])
    same = model.get("end_of_word_suffix") == "</w>" and json.dumps(WORDS)[1:-1] in their_words
    if "merges" in model and not same:
        refusal = f"#version: {REFUSAL}".replace(" ", "\N{NO-BREAK SPACE}")
        model["merges"] = [f"{refusal} .", *(" ".join(pair) for pair in model["merges"])]
    return values
