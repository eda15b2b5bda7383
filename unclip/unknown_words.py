"""Words of a caption that a pipeline was never trained on: it draws something all the same, which surprises people."""

import re
from collections.abc import Callable

from torch import Tensor

from unclip.errors import shown
from unclip.pipeline import UnCLIP

NEAREST = 3
"""Training captions that are named."""


def unknown_words(caption: str, training_captions: list[str]) -> list[str]:
    """The words of a caption that no training caption contains, each once. Case does not count."""
    text = "\n".join(training_captions).casefold()
    known = set(split_words(text))
    return [word for word in dict.fromkeys(split_words(caption)) if word not in known and not is_written_in(word, text)]


def split_words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def is_written_in(word: str, text: str) -> bool:
    """Whether a word of a script without spaces, as Chinese, may be put together from a text: all its signs are."""
    has_case = word.upper() != word.lower()
    return not has_case and not word.isdecimal() and all(sign in text for sign in word)


def describe_unknown_words(
    pipe: UnCLIP, captions: list[str], training_captions: list[str], encode: Callable[[], Tensor] | None = None
) -> str | None:
    """A line that names unknown words of captions, and the training captions nearest to the first of them; or None.

    `encode` gives the text embeddings of the training captions, where they are kept.
    """
    words = unknown_words("\n".join(captions), training_captions)
    if not words or len(training_captions) < 2:  # a single one is but an example
        return None
    encoded = encode() if encode else pipe.encode_text(training_captions)
    first = next(caption for caption in captions if words[0] in split_words(caption))
    cosines = encoded @ pipe.encode_text(first)[0]
    nearest = cosines.topk(min(NEAREST, len(training_captions))).indices.tolist()
    names = ", ".join(map(shown, words[:5]))
    near = ", ".join(shown(training_captions[i]) for i in nearest)
    verb = "is" if len(words) == 1 else "are"
    return f"{names} {verb} in none of the {len(training_captions):,} training captions known here; nearest: {near}"
