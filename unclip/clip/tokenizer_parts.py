"""The parts that tokenizers of ours and of pretrained CLIPs are made of: a tokenizer.json with others is not read.

Some parts of the tokenizers library can end the process: replacements that each double a caption, say.
"""

from typing import Any

from unclip.errors import UserError, shown

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Words, as OpenAI's tokenizer splits text into them (Radford et al. 2021)."""
SPACE = {"Regex": r"\s+"}
SPLITS = [{"Regex": WORDS}, {"Regex": r"<\|startoftext\|>|<\|endoftext\|>|" + WORDS}]
PARTS: dict[str, dict[str, dict[str, list[Any]]]] = {
    "normalizer": {"NFC": {}, "Lowercase": {}, "Strip": {}, "Replace": {"pattern": [SPACE], "content": [" "]}},
    "pre_tokenizer": {"ByteLevel": {}, "Split": {"pattern": SPLITS}},
    "post_processor": {"ByteLevel": {}, "RobertaProcessing": {}, "TemplateProcessing": {}},
    "decoder": {"ByteLevel": {}},
    "model": {"BPE": {"dropout": [None]}},
}
"""Section of tokenizer.json -> its parts, by type -> the fields whose values must be one of these."""
SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")
"""The names that a part of the type Sequence has for its inner parts."""


def check_tokenizer_parts(values: dict[str, Any]) -> None:
    """Raise UserError for a part in the content of a tokenizer.json that none of our tokenizers has."""
    for section, known in PARTS.items():
        for part in _flat_parts(values.get(section)):
            kind = part.get("type", "BPE" if section == "model" else None)  # early files leave the model's type out
            if kind not in known:
                raise UserError(f"its {section} {shown(kind)} is not read; known are: {', '.join(known)}")
            for name, allowed in known[kind].items():
                if part.get(name) not in allowed:
                    raise UserError(f"its {section} {kind} has the {name} {shown(part.get(name))}, not {allowed[0]}")


def _flat_parts(part: Any) -> list[dict[str, Any]]:
    """A part, or those of a sequence of parts. None for no part."""
    if part is None:
        return []
    if isinstance(part, dict) and part.get("type") == "Sequence":
        inner: Any = next((part[name] for name in SEQUENCES if name in part), [])
        return [flat for nested in inner for flat in _flat_parts(nested)]
    if not isinstance(part, dict) or not isinstance(part.get("type", ""), str):
        raise UserError(f"it has {shown(part)} in place of a part")
    return [part]
