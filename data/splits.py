"""Training, validation and test: which records belong to which split."""

import hashlib
import re
from collections.abc import Sequence

from data.problems import quantity
from data.records import Record

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""The split that each name stands for in folders, files and data sets."""
SHARE = 0.05
"""The fraction of a source without splits that goes to validation; as much goes to test."""
FEWEST = 10
"""The fewest images of a split: preview grids show this many."""


def split_of_name(name: str) -> str | None:
    """The split that a folder's name stands for, which a number may follow: train2017."""
    return SPLIT_NAMES.get(name.lower().rstrip("0123456789_-"))


def split_in_name(name: str) -> str | None:
    """The split that a word in a name stands for: my-train_0.tar."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def defined_splits(records: Sequence[Record]) -> set[str]:
    """The splits, of validation and test, that the source itself defines."""
    return {record.split for record in records} & {"validation", "test"}


def split_records(records: Sequence[Record], split: str) -> list[Record]:
    """The records of a split, as the source defines it; else 5% for validation, 5% for test and the rest for training.

    A source that defines only one of validation and test uses it for both. Otherwise the hash of a record's name
    decides, so hardly any record changes its split when others are added.
    """
    defined = defined_splits(records)
    if defined:
        if split != "train" and split not in defined:
            split = defined.pop()
        return [record for record in records if (record.split or "train") == split]
    names = sorted((record.name for record in records), key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(FEWEST, round(SHARE * len(names)))
    parts = {"test": names[:count], "validation": names[count : 2 * count], "train": names[2 * count :]}
    chosen = set(parts[split])
    return [record for record in records if record.name in chosen]


def split_of_key(key: str) -> str:
    """The split of one row of many, of which there is no list: the hash of its key decides, with the shares above."""
    place = int.from_bytes(hashlib.sha256(key.encode(errors="surrogateescape")).digest()[:8]) / 2**64
    if place < SHARE:
        return "test"
    return "validation" if place < 2 * SHARE else "train"


def limit_records(records: list[Record], limit: int | None) -> list[Record]:
    """At most `limit` records, spread evenly over the source, which may be sorted by class."""
    if limit is None:
        return records
    return records[:: max(1, len(records) // limit)][:limit]


def explain_too_few(records: Sequence[Record], split: str, count: int) -> str | None:
    """The reason why a split of `count` images is too small; None if it is large enough."""
    if count >= FEWEST:
        return None
    if defined_splits(records):
        return f"it has {quantity(count, 'usable image')} for {split}, but at least {FEWEST} are needed"
    return (
        f"it has {quantity(len(records), 'usable image')}, but at least {3 * FEWEST} are needed: {FEWEST} each "
        "for training, validation and test"
    )
