"""Look at a source of captioned images before training on it.

    python -m data.inspect emoji
    python -m data.inspect path/to/folder --out outputs/inspect

Prints counts, sizes, caption statistics, duplicates and what cannot be used, and writes a grid of images under their
captions.
"""

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip import signals

    signals.install()

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image
from tqdm import tqdm

from data import fashion_mnist
from data.records import SHOWN, SPLITS, Listing, Problems, Record, decode, split_records
from data.sources import SIZE, SourceConfig, read
from unclip import cli
from unclip.errors import UserError, reason
from unclip.images import captioned_grid, save_png, upright

GRID = 24
"""Images in the grid."""


@dataclass(frozen=True)
class InspectOptions:
    source: Annotated[str, tyro.conf.Positional]
    """What --data takes: fashion-mnist, emoji, cifar10, a folder, an array file, or a Hugging Face data set."""
    out: Path = Path("outputs/inspect")
    """Folder for the grid."""
    data: SourceConfig = field(default_factory=SourceConfig)


def inspect(options: InspectOptions) -> None:
    """Print what a source holds and write OUT/grid.png.

    Raises UserError if there is no such source, if nothing of it can be used, or, if strict, if something cannot.
    """
    config, problems = replace(options.data, source=options.source), Problems(options.source)
    listing = garments(config) if config.source == "fashion-mnist" else read(config, problems)
    records = listing.records
    classes = f", classes {', '.join(listing.classes)}" if listing.classes else ""
    print(f"{len(records)} images with captions{classes}")
    print("  " + ", ".join(f"{len(split_records(records, split))} for {split}" for split in SPLITS))
    usable = _images(records, problems)
    if usable:
        _captions([caption for record in usable for caption in record.captions])
    problems.report(config.strict)
    if not usable:
        raise UserError(f"{options.source} holds nothing that can be used")
    size, channels = config.size or listing.size or SIZE, 1 if config.grey else 3
    rows = [(r.captions[0], decode(r, size, channels, config.fit).transpose(1, 2, 0)[None]) for r in usable[:GRID]]
    save_png(options.out / "grid.png", captioned_grid(rows))
    print(f"grid in {options.out / 'grid.png'}")


def garments(config: SourceConfig) -> Listing:
    """Fashion-MNIST, each image with a caption that is drawn for it."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for split in SPLITS:
        part = fashion_mnist.load(split, config.root)
        captions = [part.captions[i] for i in part.draw(torch.arange(len(part)), generator)]
        for row, (pixels, caption) in enumerate(zip(part.images[:, 0].numpy(), captions, strict=True)):
            records.append(Record(f"{split} {row}", partial(Image.fromarray, pixels), (caption,), split=split))
    return Listing(records, part.classes, part.image_size)


def _images(records: list[Record], problems: Problems) -> list[Record]:
    """Print sizes, kinds of pixels, and images that are equal. Returns the records that can be read."""
    usable, sizes, modes, copies = [], Counter(), Counter(), defaultdict(dict)
    for record in tqdm(records, desc="reading", leave=False, disable=None):
        try:
            with record.open() as image:
                pixels = upright(image, 3)
                size, mode = image.size, image.mode
        except Exception as error:  # Pillow raises many kinds for broken files
            problems.add(record.name, f"cannot be read as an image ({reason(error)})")
            continue
        usable.append(record)
        sizes[size] += 1
        modes[mode] += 1
        copies[hashlib.sha256(repr(size).encode() + pixels.tobytes()).digest()][record.name] = None
    print("sizes: " + most_common(sizes, lambda size: f"{size[0]}x{size[1]}"))
    print("pixels: " + most_common(modes, str))
    twice = [list(names) for names in copies.values() if len(names) > 1]
    print(f"duplicates: {sum(len(names) - 1 for names in twice)} images are equal to an earlier one")
    print("".join(f"  {', '.join(names[:SHOWN])}\n" for names in twice[:SHOWN]), end="")
    return usable


def _captions(captions: list[str]) -> None:
    words = sorted(len(caption.split()) for caption in captions)
    print(f"captions: {len(captions)}, of which {len(set(captions))} are distinct")
    print(f"  words: {words[0]} to {words[-1]}, median {words[len(words) // 2]}")
    print("  most frequent: " + most_common(Counter(captions), repr))


def most_common(counts: Counter, show: Callable[[object], str]) -> str:
    """ "32x32 (60000), 28x28 (3), and 7 others"."""
    shown: Iterable[str] = (f"{show(key)} ({count})" for key, count in counts.most_common(SHOWN))
    return ", ".join(shown) + (f", and {len(counts) - SHOWN} others" if len(counts) > SHOWN else "")


if __name__ == "__main__":
    cli.run(lambda: inspect(cli.parse(InspectOptions, __doc__)))
