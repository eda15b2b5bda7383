"""Which source a name or a path means, and its splits as data sets."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from data import archives, arrays, cifar10, emoji, fashion_mnist, folder, shards, tables
from data import hugging_face as hub
from data.class_captions import name_classes
from data.dataset import CaptionedImages, build_data_set
from data.decoding import Fit, collect_images, common_size, filter_readable
from data.problems import Problems
from data.records import Columns, Listing
from data.splits import FEWEST, SHARE, defined_splits, explain_too_few, limit_records, split_records
from unclip.errors import UserError
from unclip.fields import as_option, bounded, check
from unclip.store.files import check_fetched

NAMES = ("fashion-mnist", "emoji", "cifar10")
SHAPE = ("size", "fit", "grey")
"""The options that fashion-mnist alone does not read."""
SIZE = 64
"""Pixels per side of images that differ in size, or are all larger."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = {".npz": "arrays", ".npy": "arrays", shards.SUFFIX: "shards"}
FILES |= dict.fromkeys(tables.SUFFIXES, "table") | dict.fromkeys(hub.FORMATS, "hub")
FILES |= dict.fromkeys(archives.SUFFIXES, "archive") | {".txt": "table"}
"""What files mean, by their suffix."""
IN_TABLES = ("image_column", "caption_column", "class_names")
OPTIONS = {
    "emoji": ("root", "skin_tones"),
    "cifar10": ("root", "classes"),
    "arrays": ("class_names",),
    "table": IN_TABLES,
    "folder": IN_TABLES,
    "shards": IN_TABLES,
    "hub": (*IN_TABLES, "split"),
}
"""Which options each kind of source reads, beside those that all do."""


@dataclass(frozen=True)
class SourceConfig:
    source: Annotated[str, tyro.conf.arg(name="")] = bounded("fashion-mnist", affects_weights=False)
    """fashion-mnist, emoji, cifar10, a folder of captioned images, a table of their names and captions (.csv, .tsv,
    .jsonl, .json), an .npz or .npy file, webdataset shards (.tar, .tar.gz), a folder as .zip, or a Hugging Face data
    set."""
    root: Path | None = bounded(None, affects_weights=False)
    """Folder with the files of fashion-mnist, emoji or cifar10; without it they are downloaded to data/raw."""
    size: int | None = bounded(None, 1, 1024)
    """Height and width of the images (default: their own, if all have one size of 64 at most, or of any in an array; 32
    for emoji; else 64)."""
    fit: Fit = "crop"
    """What is done to images that are not square: cut to the middle, padded with white, or stretched."""
    grey: bool = False
    """Read the images as grey ones, with one channel; else they are read as colour ones."""
    classes: str = ""
    """Of cifar10 only these classes: ship,truck."""
    class_names: str = ""
    """Names of the classes in order, where captions or labels are nothing but their numbers: cat,dog."""
    image_column: str = "image"
    """Column of the images in a Hugging Face data set, or of their files' names in a table; there file_name will do."""
    caption_column: str = "text"
    """Column of the captions, in a Hugging Face data set, a table or the .json files of shards."""
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
    listing = read(config, problems)
    name = Path(config.source).resolve().name if Path(config.source).exists() else config.source
    size, channels = image_size(config, listing), 1 if config.grey else 3
    records = listing.records
    if SHARE * len(records) < 2 * FEWEST and not defined_splits(records):  # each one counts
        records = filter_readable(records, size, channels, config.fit, problems)
    parts = {split: limit_records(split_records(records, split), config.limit) for split in splits}
    found, seen = [], set()
    for split, chosen in parts.items():
        if why := explain_too_few(records, split, len(chosen)):
            _refuse(config.source, why, problems)
    for split, chosen in parts.items():
        seen |= {record.name for record in chosen}
        images, kept = collect_images(f"{name}/{split}", chosen, size, channels, config.fit, problems)
        if len(kept) < FEWEST:
            why = f"of its {len(chosen)} images for {split} {len(kept)} can be read, but at least {FEWEST} are needed"
            _refuse(config.source, why, problems)
        found.append(build_data_set(f"{name}/{split}", images, kept, listing.classes))
    if config.strict:
        rest = [record for record in records if record.name not in seen]
        filter_readable(rest, size, channels, config.fit, problems)
    problems.report(config.strict)
    return found


def _refuse(source: str, why: str, problems: Problems) -> NoReturn:
    problems.report(strict=False)
    raise UserError(
        f"{source} cannot be trained on: {why}; look at it with: python -m data.inspect {shlex.quote(source)}"
    )


def image_size(config: SourceConfig, listing: Listing) -> int:
    """Height and width to train on: those asked for, else the images' own if they all have one size, else `SIZE`.

    Images of one size that is larger than `SIZE` are resized, except for arrays, which were made for their size.
    """
    return config.size or listing.size or common_size(listing.records, config.fit, SIZE) or SIZE


def read(config: SourceConfig, problems: Problems) -> Listing:
    """What a source that lists its records holds, all splits together.

    Raises UserError if there is no such source, and for options that it does not know.
    """
    names = tuple(name.strip() for name in config.class_names.split(",") if name.strip())
    listing = name_classes(_listing(config, problems), names, problems)
    if len(listing.records) > 1 and len({record.captions for record in listing.records}) == 1:
        problems.note("one caption", "all images have the same captions, so that they tell nothing apart")
    return listing


def _listing(config: SourceConfig, problems: Problems) -> Listing:
    source, kind = Path(config.source), _kind(config.source)
    if kind == "archive":
        source = archives.unpacked(check_fetched(source))
        kind = _kind(str(source))
    _refuse_others(config, *OPTIONS[kind])
    columns = Columns(config.image_column, config.caption_column)
    if source.is_file():
        check_fetched(source)
    if kind == "emoji":
        return emoji.read(config.root, config.skin_tones, problems)
    if kind == "cifar10":
        return cifar10.read(config.root, tuple(filter(None, config.classes.split(","))))
    if kind == "arrays":
        return arrays.read(source, problems)
    if kind == "hub":
        return hub.read(str(source), columns, config.split, problems)
    reader = {"folder": folder.read, "table": folder.read_table, "shards": shards.read}[kind]
    return reader(source, columns, problems)


def _kind(source: str) -> str:
    """What a name or a path means: a key of OPTIONS. Raises UserError if it means nothing."""
    path = Path(source)
    if source in ("emoji", "cifar10"):
        return source
    if path.is_dir():
        if folder.is_one(path):
            return "folder"
        if hub.is_one(path):
            return "hub"
        return "shards" if shards.is_one(path) else "folder"
    files = ", ".join(FILES)
    if path.exists():
        if suffix := _suffix(source):
            return FILES[suffix]
        raise UserError(f"{path} is a file of another kind than {files}; unpack it, or convert it to one of these")
    if is_there(source):
        return "hub"
    raise UserError(
        f"there is no data set {source!r}; give one of {', '.join(NAMES)}, a folder, a file ({files}), or a data set "
        "of the Hugging Face Hub as owner/name"
    )


def _suffix(source: str) -> str | None:
    """That of `FILES` which a name ends in."""
    return next((suffix for suffix in FILES if source.lower().endswith(suffix)), None)


def is_there(source: str) -> bool:
    """Whether a source can be looked for: not a path to nothing."""
    hub_name = HUB_NAME.fullmatch(source) and not _suffix(source)
    return source in NAMES or Path(source).exists() or bool(hub_name)


def as_options(config: SourceConfig, names: Iterable[str] = ()) -> list[str]:
    """The command-line options for a config: of these names, or the source and all that is not as it is by default."""
    options = []
    for item in fields(config):
        value, option = getattr(config, item.name), as_option(f"data.{item.name}")
        if item.name in names or (not names and (item.name == "source" or value != item.default)):
            option = "--data" if item.name == "source" else option
            options += [option] if value is True else [option, str(value)]
    return options


def _refuse_others(config: SourceConfig, *read: str) -> None:
    """Raise UserError for an option that is set, and that this source does not read."""
    for name in {"root", "classes", "class_names", "image_column", "caption_column", "split", "skin_tones"} - set(read):
        if getattr(config, name) != getattr(SourceConfig, name):
            raise UserError(f"--data.{name.replace('_', '-')} has no meaning for {config.source}; leave it out")
