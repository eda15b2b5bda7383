"""A few captions that stand for many."""

import re
from collections import Counter
from collections.abc import Sequence


def choose_varied(captions: Sequence[str], count: int) -> list[str]:
    """At most `count` distinct captions that use as many of the words as such a choice does, the frequent ones first.

    Each next caption is the one whose words that are not used yet are in most captions. Once all words are used, they
    count anew.
    """
    words = {caption: set(re.findall(r"\w+", caption.lower())) for caption in captions}
    frequency = Counter(word for own in words.values() for word in own)
    chosen, fresh = [], set(frequency)
    while words and len(chosen) < count:
        if not any(own & fresh for own in words.values()):
            fresh = set(frequency)
        best = max(words, key=lambda caption: sum(frequency[word] for word in words[caption] & fresh))
        fresh -= words.pop(best)
        chosen.append(best)
    return chosen
