"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): find it, check it, split it.

70,000 grey garments of 28x28 pixels in ten classes. The files are taken from the first of these that holds them: the
folder given as --data.root, an earlier download, Debian's installed package `dataset-fashion-mnist`, torchvision's
mirror, the same package downloaded and unpacked, which needs no root.

    python -m data.fashion_mnist        # fetch and verify the files, and print the sizes of the splits
"""

import functools
import gzip
import hashlib
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from data import paths
from data.dataset import CaptionedImages
from data.debian import unpack_package
from data.fashion_mnist_captions import (
    CLASSES,
    PLAIN_CAPTIONS,
    Grammar,
    GrammarCaptions,
    attribute_codes,
    attributes,
    class_bounds,
    is_held_out,
)
from data.source_config import SourceConfig
from data.splits import SPLITS
from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.errors import UserError, reason

RAW = paths.RAW / "fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"

# SHA-256 of the decompressed files: mirrors compress them differently.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
VALIDATION = 5_000
"""Images of the validation split."""


@dataclass
class FashionMNIST(CaptionedImages):
    """Captioned images with attributes, which are measured by the rule of data/fashion_mnist_captions.py."""

    attributes: Tensor = field(kw_only=True)
    """(N, 2) codes into TONES and WIDTHS; 0 is the middle third, which captions do not mention."""
    bounds: Tensor = field(kw_only=True, repr=False)
    """Bounds between the thirds of the attributes, by class, (10, 2, 2)."""

    per_image: ClassVar[tuple[str, ...]] = (*CaptionedImages.per_image, "attributes")


def load_configured_split(config: SourceConfig, split: str, held_out: bool = False) -> FashionMNIST:
    """Load a split as data/sources.py asks for it."""
    return load_split(split, config.root, held_out)


def load_split(split: str = "train", root: Path | None = None, held_out: bool = False) -> FashionMNIST:
    """Load a split into memory.

    The 60,000 training images are divided at random (seeded) into 55,000 to train on and 5,000 for validation. Choices
    are made on the 5,000; the 10,000 test images are for final figures alone. "train" leaves out the images that show a
    held-out pair of class and attribute (data/fashion_mnist_captions.py) unless `held_out` is set; other splits keep
    them.

    Raises UserError if the files are found nowhere, or are damaged.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    folder = find_fashion_mnist(root)
    images, labels, order, bounds = _load_training_files(folder)
    if split == "test":
        images, labels = read_files(folder, "t10k")
    else:
        chosen = order[VALIDATION:] if split == "train" else order[:VALIDATION]
        images = images[chosen]
        labels = labels[chosen]
    codes = attribute_codes(attributes(images), labels, bounds)
    if split == "train" and not held_out:
        keep = ~is_held_out(codes, labels)
        images = images[keep]
        labels = labels[keep]
        codes = codes[keep]
    grammar = Grammar.build()
    return FashionMNIST(
        name=f"fashion-mnist/{split}",
        images=images,
        captioner=GrammarCaptions(grammar, labels, codes),
        labels=labels,
        classes=CLASSES,
        class_captions=PLAIN_CAPTIONS,
        class_prompts=grammar.class_prompts(),
        attributes=codes,
        bounds=bounds,
    )


@functools.cache
def _load_training_files(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 60,000 images and labels, their shuffled order, and the bounds of the attributes in the training part."""
    images, labels = read_files(folder, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    training = order[VALIDATION:]
    return images, labels, order, class_bounds(attributes(images[training]), labels[training])


def read_files(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 1, 28, 28) and labels (N,) of "train" or "t10k". Raises UserError for damaged files."""
    images = _read_verified(folder, f"{prefix}-images-idx3-ubyte")
    labels = _read_verified(folder, f"{prefix}-labels-idx1-ubyte")
    count = 60_000 if prefix == "train" else 10_000
    if len(images) != 16 + count * 28 * 28 or len(labels) != 8 + count or max(labels[8:]) >= len(CLASSES):
        raise UserError(f"{folder} does not hold {count} images and labels 0-9 of Fashion-MNIST")
    pixels = torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).copy())
    return pixels.view(count, 1, 28, 28), torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).copy()).long()


def _read_verified(folder: Path, name: str) -> bytes:
    """The content of a file, decompressed, after a check of its SHA-256."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise UserError(f"{folder} lacks {name}.gz; delete the folder to fetch it again, or give another --data.root")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is corrupt or truncated ({error}); restore it, or delete it to fetch it again"
        ) from error
    if hashlib.sha256(content).hexdigest() != FILES[name]:
        raise UserError(
            f"{path} is corrupt: its SHA-256 is not that of Fashion-MNIST; restore it, or delete it to fetch it again"
        )
    return content


def _is_complete(folder: Path) -> bool:
    return all((folder / f"{name}.gz").is_file() or (folder / name).is_file() for name in FILES)


def find_fashion_mnist(root: Path | None = None) -> Path:
    """A folder with the four files, which are downloaded if need be. Raises UserError if they are found nowhere."""
    if root is not None:
        for folder in (root, root / "FashionMNIST" / "raw"):  # the second is torchvision's layout
            if folder.is_dir() and any(folder.glob("*-ubyte*")):
                return folder
        raise UserError(
            f"--data.root {root} does not hold Fashion-MNIST; expected {', '.join(f'{f}.gz' for f in FILES)}"
        )
    for folder in (RAW, INSTALLED):
        if _is_complete(folder):
            return folder
    reasons = []
    for fetch in (_fetch_from_mirror, _fetch_from_debian):
        RAW.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=RAW.parent) as temporary:
            try:
                folder = fetch(Path(temporary))
                for prefix in ("train", "t10k"):
                    read_files(folder, prefix)
                RAW.mkdir(exist_ok=True)
                for name in FILES:
                    shutil.move(folder / f"{name}.gz", RAW / f"{name}.gz")
                return RAW
            except Exception as error:  # whatever a download may raise; the next place is tried
                reasons.append(f"{(fetch.__doc__ or 'one place').rstrip('.')}: {reason(error)}")
    raise UserError(
        f"Fashion-MNIST could not be fetched ({'; '.join(reasons)}); put its four .gz files in {RAW}, or name their "
        "folder with --data.root"
    )


def _fetch_from_mirror(folder: Path) -> Path:
    """torchvision's mirror."""
    from torchvision.datasets import FashionMNIST  # seconds to import, so only here

    print("Fetching Fashion-MNIST from torchvision's mirror ...", file=sys.stderr)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        FashionMNIST(folder, train=True, download=True)
    finally:
        socket.setdefaulttimeout(before)
    return folder / "FashionMNIST" / "raw"


def _fetch_from_debian(folder: Path) -> Path:
    """Debian's package."""
    unpack_package(PACKAGE, folder)
    return folder / "usr" / "share" / "datasets" / "fashion-mnist"


@dataclass(frozen=True)
class FetchOptions:
    """This program has no options but --help."""


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch Fashion-MNIST if it is missing, verify it, and print the number of images of each split."""
    parse(FetchOptions, main.__doc__, argv=argv)
    counts = ", ".join(f"{len(load_split(split))} {split}" for split in SPLITS)
    print(f"Fashion-MNIST in {find_fashion_mnist()}: {counts}")


if __name__ == "__main__":
    run(main)
