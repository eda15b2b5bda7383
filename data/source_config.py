"""The options of a source of captioned images: all that begin with --data."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data.records import Columns
from data.splits import FEWEST
from unclip.fields import as_option, bounded, check
from unclip.fitting import Fit

SHAPE_OPTIONS = ("size", "fit", "grey")
"""The options that say how images are resized and in which colours they are read."""
STREAM_OPTIONS = ("stream", "sample", "buffer", "workers", "embed")
"""The options that say how a source is streamed."""


@dataclass(frozen=True)
class SourceConfig:
    source: Annotated[str, tyro.conf.arg(name="")] = bounded("fashion-mnist", affects_weights=False)
    """fashion-mnist, emoji, shapes, cifar10, a folder of captioned images, a table of their names and captions (.csv,
    .tsv, .jsonl, .json), an .npz or .npy file, webdataset shards (.tar, .tar.gz, 'FOLDER/*.tar'), a folder as .zip, or
    a Hugging Face data set."""
    root: Path | None = bounded(None, affects_weights=False)
    """Folder with the files of fashion-mnist, emoji or cifar10 (default: download them to data/raw)."""
    size: int | None = bounded(None, 1, 1024)
    """Height and width of the images (default: their own, if all have one size of at most 64, or of any size in an
    array; 32 for emoji; else 64)."""
    fit: Fit = "crop"
    """How to make images square: crop to the middle, pad with white, or stretch."""
    grey: bool = False
    """Read the images in grey, with one channel (default: in colour)."""
    classes: str = ""
    """Use only these classes of cifar10: ship,truck."""
    class_names: str = ""
    """Names of the classes, in order, if captions or labels are only class numbers: cat,dog."""
    image_column: str = "image"
    """Column of the images in a Hugging Face data set, or of their file names in a table (there also file_name)."""
    caption_column: str = "text"
    """Column of the captions in a Hugging Face data set, in a table, or in the .json files of shards."""
    split: str | None = None
    """Use only this split of a Hugging Face data set; it is split anew for training, validation and test."""
    skin_tones: bool = False
    """Include the emoji of each skin tone."""
    strict: bool = False
    """Refuse a source with rows that cannot be used, instead of leaving them out. All splits are checked."""
    limit: int | None = bounded(None, FEWEST, 10**9)
    """Use at most this many images of each split."""
    stream: bool = bounded(False, affects_weights=False)
    """Read .tar, .parquet or .arrow shards while the training goes on, see data/stream/README.md."""
    sample: int = bounded(100_000, 3 * FEWEST, 10**8, affects_weights=False)
    """Rows of a stream that its tokenizer is trained on."""
    buffer: int = bounded(1000, 1, 10**7, affects_weights=False)
    """Rows of a stream among which a worker draws the next."""
    workers: int = bounded(2, 0, 1024, affects_weights=False)
    """Processes of each rank that read and decode a stream; 0: the rank does it itself."""

    embed: Literal["stored", "online"] = bounded("stored", affects_weights=False)
    """Embeddings of a stream: written beforehand by python -m stages.embed, or computed beside the training."""

    def __post_init__(self):
        check(self, "data.", as_option)

    @property
    def columns(self) -> Columns:
        return Columns(self.image_column, self.caption_column)


def as_options(config: SourceConfig, names: Iterable[str] = ()) -> list[str]:
    """The command-line options of a config: those named, or else the source and every option that is not a default."""
    options = []
    for item in fields(config):
        value = getattr(config, item.name)
        is_set = item.name == "source" or value != item.default
        if item.name in names or (not names and is_set):
            option = "--data" if item.name == "source" else as_option(f"data.{item.name}")
            options += [option] if value is True else [option, str(value)]
    return options
