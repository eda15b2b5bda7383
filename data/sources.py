"""Which source a name or a path means, and its splits as data sets."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data import arrays, cifar10, emoji, fashion_mnist, folder, hub
from data.dataset import CaptionedImages
from data.records import FEWEST, Fit, Listing, Problems, captioned, collect, decoded, split_records
from unclip.errors import UserError
from unclip.fields import as_option, bounded, check, free

NAMES = ("fashion-mnist", "emoji", "cifar10")
SIZE = 64
"""Pixels a side of what has no size of its own."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class SourceConfig:
    source: Annotated[str, tyro.conf.arg(name="")] = free("fashion-mnist")
    """fashion-mnist, emoji, cifar10, a folder of captioned images, an .npz or .npy file, or a Hugging Face data set."""
    root: Path | None = free(None)
    """Folder with the files of fashion-mnist, emoji or cifar10; without it they are downloaded to data/raw."""
    size: int | None = bounded(None, 1, 1024)
    """Height and width of the images (default: 32 for emoji and cifar10, those of an array, else 64)."""
    fit: Fit = "crop"
    """What is done to images that are not square: cut to the middle, padded with white, or stretched."""
    grey: bool = False
    """Read the images as grey ones, with one channel; else they are read as colour ones."""
    classes: str = ""
    """Of cifar10 only these classes: ship,truck."""
    image_column: str = "image"
    """Column of the images in a Hugging Face data set."""
    caption_column: str = "text"
    """Column of the captions, in a data set or in metadata.jsonl or .csv."""
    split: str | None = None
    """Use this split of a Hugging Face data set alone, for training, validation and test."""
    skin_tones: bool = False
    """Of emoji also those of each skin tone."""
    strict: bool = False
    """Refuse a source with rows that cannot be used, instead of leaving them out; all splits are looked at."""
    limit: int | None = bounded(None, FEWEST, 10**9)
    """Use only so many training images, and at most as many for validation and test."""

    def __post_init__(self):
        check(self, "data.", as_option)


def load(config: SourceConfig, splits: Sequence[str], held_out: bool = False) -> list[CaptionedImages]:
    """Splits of a source.

    With `held_out` the training images of fashion-mnist include those of the held-out pairs. Raises UserError if there
    is no such source, or nothing to use in it.
    """
    if config.source == "fashion-mnist":
        _refuse_others(config, "root")
        if config.size or config.grey or config.fit != "crop":
            raise UserError("fashion-mnist is used as it is, grey and 28x28; leave --data.size, fit and grey out")
        return [fashion_mnist.load(split, config.root, held_out).first(config.limit) for split in splits]
    problems = Problems(config.source)
    records, classes, own_size = read(config, problems)
    name = Path(config.source).resolve().name if Path(config.source).exists() else config.source
    size, channels = config.size or own_size or SIZE, 1 if config.grey else 3
    found, seen = [], set()
    for split in splits:
        chosen = split_records(records, split)
        if config.limit:  # from all over the source, which may be sorted by class
            chosen = chosen[:: max(1, len(chosen) // config.limit)][: config.limit]
        if len(chosen) < FEWEST:
            problems.report(strict=False)
            raise UserError(
                f"{config.source} has {len(chosen)} usable rows for {split}, but at least {FEWEST} are needed (30 "
                f"where no splits are named); look at it with: python -m data.inspect {config.source}"
            )
        seen |= {record.name for record in chosen}
        images, kept = collect(f"{name}/{split}", chosen, size, channels, config.fit, problems)
        found.append(captioned(f"{name}/{split}", images, kept, classes))
    if config.strict:
        rest = [record for record in records if record.name not in seen]
        for record, result in zip(rest, decoded(rest, size, channels, config.fit), strict=True):
            if isinstance(result, str):
                problems.add(record.name, result)
    problems.report(config.strict)
    return found


def read(config: SourceConfig, problems: Problems) -> Listing:
    """What a source that lists its records holds, all splits together."""
    path = Path(config.source)
    if config.source == "emoji":
        _refuse_others(config, "root", "skin_tones")
        return emoji.read(config.root, config.skin_tones, problems)
    if config.source == "cifar10":
        _refuse_others(config, "root", "classes")
        return cifar10.read(config.root, tuple(filter(None, config.classes.split(","))))
    if path.suffix.lower() in (".npy", ".npz") and path.is_file():
        _refuse_others(config)
        return arrays.read(path, problems)
    if path.is_dir() and (folder.is_one(path) or not hub.is_one(path)):
        _refuse_others(config, "caption_column")
        return folder.read(path, config.caption_column, problems)
    is_table = path.is_file() and path.suffix.lower() in hub.FORMATS
    if is_table or path.is_dir() or HUB_NAME.fullmatch(config.source):
        _refuse_others(config, "image_column", "caption_column", "split")
        return hub.read(config.source, config.image_column, config.caption_column, config.split, problems)
    raise UserError(
        f"there is no data set {config.source!r}; give one of {', '.join(NAMES)}, a folder, an .npz, .npy, .parquet or "
        ".arrow file, or a data set of the Hugging Face Hub as owner/name"
    )


def _refuse_others(config: SourceConfig, *read: str) -> None:
    """Raise UserError for an option that is set, and that this source does not read."""
    for name in {"root", "classes", "image_column", "caption_column", "split", "skin_tones"} - set(read):
        if getattr(config, name) != getattr(SourceConfig, name):
            raise UserError(f"--data.{name.replace('_', '-')} has no meaning for {config.source}; leave it out")
