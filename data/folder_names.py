"""Splits and classes by the names of folders.

train/cat/1.png, test/dog/2.png     the split, then the class
cat/train/1.png                     the class, then the split
images/cat/1.png                    a folder that holds all images says nothing
cat/black/1.png                     "cat black": a class within a class
cat/session1/1.png                  "cat": a number does not belong to a class
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from data.splits import split_of_name
from unclip.errors import printable

Folders = tuple[str, ...]
"""The names of the folders that an image lies in, below its source."""


class FolderMeaning(NamedTuple):
    """The meaning of an image's folders."""

    split: str | None
    is_outside: bool
    """Whether it lies beside folders of splits that hold all else."""
    rest: Folders
    """The folders that may be its class."""


def read_split_folders(images: Sequence[Folders], captioned: bool) -> list[FolderMeaning]:
    """Find the folders that are splits.

    A folder may be named train or test and be a class among others: a train, a pregnancy test. Without captions, one
    such folder beside others is a class, unless it alone has folders of classes in it.

    Args:
        captioned: whether the captions come from elsewhere, so that folders need not be classes.
    """
    rests = _without_common(images)
    common = [image[: len(image) - len(rest)] for image, rest in zip(images, rests, strict=True)]
    if rests and all(len(rest) > 1 and split_of_name(rest[1]) and not split_of_name(rest[0]) for rest in rests):
        rests = [(rest[1], rest[0], *rest[2:]) for rest in rests]
    tops = {rest[0] for rest in rests if rest}
    splits = {top: split for top in tops if (split := split_of_name(top))}
    others = tops - splits.keys()
    if not captioned and others:
        nested = {top for top in tops if all(len(rest) > 1 for rest in rests if rest[:1] == (top,))}
        are_splits = splits.keys() <= nested and (len(splits) > 1 or not others <= nested)
        splits = splits if are_splits else {}
    if not others and "train" not in splits.values():
        splits = {}  # a source of validation images alone is split like any other
    defined = set(splits.values())
    excludes = bool(splits) and (not captioned or ("train" in defined and len(defined) > 1))
    meanings = []
    for above, rest in zip(common, rests, strict=True):
        if rest and rest[0] in splits:
            meanings.append(FolderMeaning(splits[rest[0]], False, (*above, *rest[1:])))
        else:
            meanings.append(FolderMeaning(None, excludes, (*above, *rest)))
    return meanings


def name_classes_by_folders(images: Sequence[Folders]) -> list[str | None]:
    """The class of each image, by the folders that remain below its split; None for an image in none of them."""
    rests = _without_common(images)
    common = next((image[: len(image) - len(rest)] for image, rest in zip(images, rests, strict=True) if rest), ())
    in_classes = [rest for rest in rests if rest]
    depth = max(map(len, in_classes), default=0)
    silent = {level for level in range(1, depth) if len({rest[level : level + 1] for rest in in_classes}) == 1}
    only_numbers = bool(common) and all(map(_has_digit, (rest[0] for rest in in_classes)))
    names: list[str | None] = []
    for rest in rests:
        words = [word for level, word in enumerate(rest) if level == 0 or not (level in silent or _has_digit(word))]
        if only_numbers:  # cat/session1 and cat/session2
            words = [common[-1], *words]
        names.append(printable(" ".join(words).replace("_", " ")) if rest else None)
    return names


def _without_common(images: Sequence[Folders]) -> list[Folders]:
    """Folders without the leading ones that are the same for all images in folders, up to the first that is a split."""
    common = 0
    in_folders = [image for image in images if image]
    while len({image[common : common + 1] for image in in_folders}) == 1:
        name = in_folders[0][common : common + 1]
        if not name or split_of_name(name[0]):
            break
        common += 1
    return [image[common:] for image in images]


def _has_digit(name: str) -> bool:
    return re.search(r"\d", name) is not None
