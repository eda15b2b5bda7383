"""The sources of captioned images: a table of them, what they hold, and their splits as data sets.

A new source is one file, with a `Reader`, and one row of SOURCES; then `--data NAME` trains on it.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from PIL import Image

from data.archives import ARCHIVE_SUFFIXES, unpack_archive
from data.class_captions import name_classes
from data.dataset import CaptionedImages, build_data_set
from data.decoding import collect_images, common_size, filter_readable
from data.file_patterns import exists_locally, match_files
from data.problems import Problems
from data.records import Listing, Record
from data.source_config import SHAPE_OPTIONS, SourceConfig
from data.splits import FEWEST, SHARE, SPLITS, defined_splits, explain_too_few, limit_records, split_records
from unclip.errors import UserError, printable
from unclip.registry import resolve
from unclip.store.files import check_fetched

DEFAULT_SIZE = 64
"""Pixels per side of images that differ in size, or are all larger."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Reader(Protocol):
    """A function that lists what a source holds."""

    def __call__(self, config: SourceConfig, problems: Problems) -> Listing:
        """The records of all splits of `config.source`. Images are opened later, one by one.

        Rows that cannot be used are added to `problems`. Raises UserError if the source holds nothing of use.
        """


class SplitLoader(Protocol):
    """A function that loads a whole split, for a source whose captions are no fixed list per image."""

    def __call__(self, config: SourceConfig, split: str, held_out: bool) -> CaptionedImages:
        """The split "train", "validation" or "test". With `held_out` training includes images held out for tests."""


@dataclass(frozen=True)
class Source:
    """A kind of source: how it is recognised, and how it is read.

    Code is a function, or "module:function", which is imported when it is used. A source without suffixes and folders
    is chosen by its name in the table.
    """

    reader: str | Reader | None = None
    load_split: str | SplitLoader | None = None
    """Takes the place of `reader`."""
    options: tuple[str, ...] = ()
    """The fields of `SourceConfig` that it reads, beside those that every source with a reader does."""
    suffixes: tuple[str, ...] = ()
    """How the names of its files end."""
    recognise_folder: str | Callable[[Path], bool] | None = None
    """Whether a folder is such a source."""
    takes_pattern: bool = False
    """Whether a pattern may name several of its files."""

    @property
    def is_named(self) -> bool:
        return not self.suffixes and self.recognise_folder is None


COLUMN_OPTIONS = ("image_column", "caption_column", "class_names")

SOURCES: dict[str, Source] = {
    "fashion-mnist": Source(load_split="data.fashion_mnist:load_configured_split", options=("root",)),
    "emoji": Source("data.emoji:read_emoji", options=("root", "skin_tones")),
    "shapes": Source("data.shapes:read_shapes"),
    "cifar10": Source("data.cifar10:read_cifar10", options=("root", "classes")),
    "folder": Source(
        "data.image_folder:read_image_folder",
        options=COLUMN_OPTIONS,
        recognise_folder="data.image_folder:is_image_folder",
    ),
    "shards": Source(
        "data.shards:read_shards",
        options=COLUMN_OPTIONS,
        suffixes=(".tar",),
        recognise_folder="data.shards:is_shard_folder",
        takes_pattern=True,
    ),
    "hugging-face": Source(
        "data.hugging_face:read_hugging_face",
        options=(*COLUMN_OPTIONS, "split"),
        suffixes=(".parquet", ".arrow"),
        recognise_folder="data.hugging_face:is_saved_data_set",
        takes_pattern=True,
    ),
    "table": Source(
        "data.image_table:read_image_table",
        options=COLUMN_OPTIONS,
        suffixes=(".jsonl", ".csv", ".tsv", ".json", ".txt", ".token"),
    ),
    "arrays": Source("data.arrays:read_arrays", options=("class_names",), suffixes=(".npz", ".npy")),
}
"""Rows that recognise folders are asked in this order."""


def load_splits(config: SourceConfig, splits: Sequence[str], held_out: bool = False) -> list[CaptionedImages]:
    """Load splits of a source.

    Args:
        held_out: whether the training images of fashion-mnist include those of the held-out pairs.

    Raises UserError if there is no such source, or too little in it to use.
    """
    source = SOURCES.get(config.source)
    if source is not None and source.load_split is not None:
        _refuse_unread_options(config, source)
        load_split: SplitLoader = resolve(source.load_split)
        return [load_split(config, split, held_out).first(config.limit) for split in splits]
    problems = Problems(config.source)
    listing = read_listing(config, problems)
    name = name_of_data(config.source)
    size = image_size(config, listing)
    channels = 1 if config.grey else 3
    records = listing.records
    if SHARE * len(records) < 2 * FEWEST and not defined_splits(records):  # few records: unreadable ones matter
        records = filter_readable(records, size, channels, config.fit, problems)
    records_by_split = {split: limit_records(split_records(records, split), config.limit) for split in splits}
    for split, chosen in records_by_split.items():
        if why := explain_too_few(records, split, len(chosen)):
            _refuse(config.source, why, problems)
    data_sets: dict[str, CaptionedImages] = {}
    decoded_names = set()
    for split, chosen in records_by_split.items():
        decoded_names |= {record.name for record in chosen}
        images, readable = collect_images(f"{name}/{split}", chosen, size, channels, config.fit, problems)
        if len(readable) < FEWEST:
            why = f"{len(readable)} of its {len(chosen)} images for {split} can be read, but {FEWEST} are needed"
            _refuse(config.source, why, problems)
        data_sets[split] = build_data_set(f"{name}/{split}", images, readable, listing.classes)
    if config.strict:
        others = [record for record in records if record.name not in decoded_names]
        filter_readable(others, size, channels, config.fit, problems)
    problems.report(config.strict)
    return [data_sets[split] for split in splits]


def read_listing(config: SourceConfig, problems: Problems) -> Listing:
    """List what a source holds, all splits together.

    Raises UserError if there is no such source, and for options that it does not read.
    """
    path = Path(config.source)
    located = config
    if path.is_file() and config.source.lower().endswith(ARCHIVE_SUFFIXES):
        located = replace(config, source=str(unpack_archive(check_fetched(path))))
    source = find_source(located.source)
    _refuse_unread_options(config, source)
    if source.load_split is not None:
        return _list_loaded_splits(resolve(source.load_split), config)
    if Path(located.source).is_file():
        check_fetched(Path(located.source))
    reader: Reader = resolve(source.reader)
    class_names = [name.strip() for name in config.class_names.split(",") if name.strip()]
    listing = name_classes(reader(located, problems), class_names, problems)
    if len(listing.records) > 1 and len({record.captions for record in listing.records}) == 1:
        problems.note("one caption", "all images have the same captions, which cannot tell them apart")
    return listing


def image_size(config: SourceConfig, listing: Listing) -> int:
    """Height and width to train on: --data.size; else the images' own, if all have one; else `DEFAULT_SIZE`.

    Images that all have one size above `DEFAULT_SIZE` are scaled down, except arrays, which were made for their size.
    """
    common = config.size or listing.size or common_size(listing.records, config.fit, DEFAULT_SIZE)
    return common or DEFAULT_SIZE


def find_source(source: str) -> Source:
    """The row of SOURCES for a name or a path. Raises UserError if there is none."""
    path = Path(source)
    if is_named_source(source):
        return SOURCES[source]
    if path.is_dir():
        folder_kinds = [kind for kind in SOURCES.values() if kind.recognise_folder is not None]
        for kind in folder_kinds:
            if resolve(kind.recognise_folder)(path):
                return kind
        return SOURCES["folder"]  # whose reader explains what it expects
    suffixes = ", ".join(_file_suffixes())
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder; copy its content to a file")
    if path.exists():
        for kind in SOURCES.values():
            if kind.suffixes and source.lower().endswith(kind.suffixes):
                return kind
        raise UserError(f"{path} is a file of another kind than {suffixes}; unpack it, or convert it to one of these")
    if "://" in source:
        raise UserError(f"{source} is an address; shards are read from there with --data.stream")
    if files := match_files(source):
        return _find_source_of_pattern(source, files)
    if is_available(source):
        return SOURCES["hugging-face"]
    raise UserError(
        f"there is no data set {source!r}; give one of {', '.join(named_sources())}, a folder, a file ({suffixes}), or "
        "a data set of the Hugging Face Hub as owner/name"
    )


def named_sources() -> list[str]:
    """The names that --data takes beside paths and names of the Hub."""
    return [name for name, source in SOURCES.items() if source.is_named]


def is_named_source(source: str) -> bool:
    return source in SOURCES and SOURCES[source].is_named


def is_available(source: str) -> bool:
    """Whether a source has a name, exists on this machine, or may be elsewhere; False for a path to nothing."""
    may_be_on_hub = HUB_NAME.fullmatch(source) and not source.lower().endswith(tuple(_file_suffixes()))
    return is_named_source(source) or exists_locally(source) or bool(may_be_on_hub) or "://" in source


def _find_source_of_pattern(source: str, files: Sequence[Path]) -> Source:
    """The source whose files a pattern names. Raises UserError if they are several sources, or read one by one."""
    for kind in SOURCES.values():
        if kind.takes_pattern and all(file.name.lower().endswith(kind.suffixes) for file in files):
            return kind
    suffixes = ", ".join(suffix for kind in SOURCES.values() if kind.takes_pattern for suffix in kind.suffixes)
    raise UserError(
        f"{source} names {files[0]} and others; a pattern may name files of one of {suffixes}: give a folder"
    )


def name_of_data(source: str) -> str:
    """The name of a source in messages and manifests, without the path on this machine."""
    path = Path(source)
    if path.exists():
        return printable(path.resolve().name)
    return printable(path.absolute().parent.name if match_files(source) else source)


def has_fixed_shape(source: str) -> bool:
    """Whether the images of a source are used as they are, so that `SHAPE_OPTIONS` have no meaning for it."""
    return is_named_source(source) and SOURCES[source].load_split is not None


def _file_suffixes() -> list[str]:
    return [suffix for source in SOURCES.values() for suffix in source.suffixes] + list(ARCHIVE_SUFFIXES)


def _list_loaded_splits(load_split: SplitLoader, config: SourceConfig) -> Listing:
    """List a source of whole splits, with one caption drawn for each image."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for split in SPLITS:
        data = load_split(config, split, False)
        captions = [data.captions[i] for i in data.draw(torch.arange(len(data)), generator)]
        images = data.images.permute(0, 2, 3, 1).numpy()  # (N, H, W, C)
        for row, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
            opener = partial(Image.fromarray, pixels[..., 0] if data.channels == 1 else pixels)
            records.append(Record(f"{split} {row}", opener, (caption,), split=split))
    return Listing(records, data.classes, data.image_size, data.channels)


def _refuse(source: str, why: str, problems: Problems) -> NoReturn:
    problems.report(strict=False)
    raise UserError(
        f"{source} cannot be trained on: {why}; look at it with: python -m data.inspect {shlex.quote(source)}"
    )


def _refuse_unread_options(config: SourceConfig, source: Source) -> None:
    """Raise UserError for an option that is set, but that this source does not read."""
    read = {"source", "strict", "limit", *source.options}
    if source.reader is not None:
        read.update(SHAPE_OPTIONS)
    for item in fields(SourceConfig):
        if item.name not in read and getattr(config, item.name) != item.default:
            option = item.name.replace("_", "-")
            raise UserError(f"--data.{option} has no meaning for {config.source}; leave it out")
