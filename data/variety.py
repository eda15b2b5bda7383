"""A few captions that stand for many."""

import re
from collections import Counter
from collections.abc import Sequence


def choose_varied(captions: Sequence[str], count: int) -> list[str]:
    """Choose at most `count` distinct captions that cover many words, frequent ones first.

    Each caption is the one whose words that no chosen caption has used yet are the most frequent in total. Once all
    words are used, they all count as unused again.
    """
    words = {caption: set(re.findall(r"\w+", caption.lower())) for caption in captions}
    frequency = Counter(word for caption_words in words.values() for word in caption_words)
    unused = set(frequency)
    chosen = []
    while words and len(chosen) < count:
        if not any(caption_words & unused for caption_words in words.values()):
            unused = set(frequency)
        best = max(words, key=lambda caption: sum(frequency[word] for word in words[caption] & unused))
        unused -= words.pop(best)
        chosen.append(best)
    return chosen
