"""Look at a source of captioned images before training on it.

    python -m data.inspect emoji
    python -m data.inspect path/to/folder --out outputs/inspect
    python -m data.inspect --checkpoint checkpoints/run         # the data that this pipeline was trained on

Prints counts, sizes, statistics of the captions, duplicates, rows that cannot be used, and commands that train on the
source, with the time that they take on this machine, as a few measured steps tell. Draws images over their captions
(grid.png), and the lengths and words of the captions (captions.png).
"""

import hashlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from data.decoding import decode_image
from data.inspect.charts import bin_counts, draw_bars, draw_contact_sheet, join_pictures
from data.inspect.proposal import (
    Speed,
    choose_sizes,
    describe_cost,
    format_command,
    measure_speeds,
    pipeline_folder,
    propose_trainings,
    training_command,
    unused_folder,
)
from data.problems import SHOWN, Problems, quantity
from data.provenance import compare_source, inherit_source
from data.records import Record
from data.source_config import SourceConfig
from data.sources import image_size, read_listing
from data.splits import SPLITS, explain_too_few, split_records
from unclip.cli.options import parse, read_early_options
from unclip.errors import UserError
from unclip.image_opening import explain_unreadable
from unclip.images import save_png
from unclip.pixels import read_colours

GRID = 40
"""Images in the contact sheet."""
WORDS = 20
"""Number of most frequent words in the chart."""


@dataclass(frozen=True)
class InspectOptions:
    source: Annotated[str, tyro.conf.Positional] = ""
    """Anything that --data takes: fashion-mnist, emoji, shapes, cifar10, a folder, a table, an array or tar file, or a
    Hub set."""
    checkpoint: Path | None = None
    """Look at the data that the pipeline in this folder was trained on, in place of a source."""
    out: Path = Path("outputs/inspect")
    """Folder for the pictures."""
    data: SourceConfig = field(default_factory=SourceConfig)


@dataclass(frozen=True)
class Measurements:
    """The quantities that proposals of trainings depend on."""

    count: int
    """Number of training images."""
    size: int
    """The height and width that the decoder draws."""
    speeds: dict[str, Speed]
    factor: int = 1
    """Factor of the upsampler after it; 1 for none."""


def inspect_source(options: InspectOptions) -> Measurements | None:
    """Print the content of a source and how to train on it, and write OUT/grid.png and OUT/captions.png.

    Returns None for a source that is too small to train on. Raises UserError if there is no such source, if none of its
    rows can be used, or, with --data.strict, if one cannot.
    """
    if bool(options.source) == bool(options.checkpoint):
        raise UserError("give a source, such as emoji or a folder, or else --checkpoint DIR")
    config = replace(options.data, source=options.source or options.data.source)
    if options.checkpoint:
        compare_source(options.checkpoint, config)
    problems = Problems(config.source)
    listing = read_listing(config, problems)
    classes = f", classes {', '.join(listing.classes)}" if listing.classes else ""
    print(f"{quantity(len(listing.records), 'image')} with captions{classes}")
    channels = listing.channels or (1 if config.grey else 3)
    began = time.perf_counter()
    usable, sides = _report_images(listing.records, channels, problems, config)
    reading_seconds = time.perf_counter() - began
    if usable:
        _report_captions([caption for record in usable for caption in record.captions], len(usable))
    problems.report(config.strict)
    if not usable:
        raise UserError(f"{config.source} holds nothing that can be used")
    size = image_size(config, listing)
    factor = 1
    if not listing.size:  # arrays were made for their size
        size, factor = choose_sizes(sides, config.size, size)
    _draw_pictures(options.out, usable, size, channels, config)
    counts = {split: len(split_records(usable, split)) for split in SPLITS}
    print("splits: " + ", ".join(f"{count} for {split}" for split, count in counts.items()))
    for split, count in counts.items():
        if why := explain_too_few(usable, split, count):
            print(f"{config.source} cannot be trained on: {why}")
            return None
    print(f"training uses {size}x{size} {'grey' if channels == 1 else 'colour'} images: {describe_cost(size)}")
    if factor > 1:
        print(f"an upsampler enlarges them to {size * factor}x{size * factor}, as the images are that large")
    count = min(counts["train"], config.limit or counts["train"])
    print("measuring a few steps of each stage on them", flush=True)
    speeds = measure_speeds(config, size, count, reading_seconds, factor)
    measurements = Measurements(count, size, speeds, factor)
    _print_proposals(measurements, config)
    return measurements


def refuse_second_source(source: str, other: str | None) -> None:
    """Raise UserError if --data names another source beside the first argument."""
    if source and other is not None:
        raise UserError(f"two sources are named, {source} and --data {other}; leave --data out")


def _print_proposals(measurements: Measurements, config: SourceConfig) -> None:
    """Print how fast this machine trains on a source, and the commands to do so."""
    rates = ", ".join(f"{stage} {speed.step:.2g} s" for stage, speed in measurements.speeds.items())
    proposals = propose_trainings(measurements.count, measurements.speeds)
    minutes = [round(proposal.seconds / 60) for proposal in proposals]
    print(f"seconds per step here: {rates}")
    print(f"commands that train on them, in about {' + '.join(map(str, minutes))} minutes if this machine is idle:")
    out = unused_folder(pipeline_folder(config))
    for proposal in proposals:
        print(format_command(training_command(proposal, config, measurements.size, out, measurements.factor)))


def _report_images(
    records: list[Record], channels: int, problems: Problems, config: SourceConfig
) -> tuple[list[Record], list[int]]:
    """Print sizes, kinds of pixels and duplicates of images.

    Returns the records that can be read, and for each the side that the fit neither cuts nor fills.
    """
    usable = []
    sides = []
    sizes = Counter()
    modes = Counter()
    names_by_pixels = defaultdict(dict)
    for record in tqdm(records, desc="reading", leave=False, disable=None):
        try:
            with record.open() as image:
                size = image.size
                mode = image.mode
                pixels = read_colours(image, 3)
        except Exception as error:  # Pillow raises many kinds for broken files
            problems.add(record.name, explain_unreadable(error))
            continue
        usable.append(record)
        sides.append(min(size) if config.fit == "crop" else max(size))
        sizes[size] += 1
        modes[mode] += 1
        digest = hashlib.sha256(repr(size).encode() + pixels.tobytes()).digest()
        names_by_pixels[digest][record.name] = None
    if not usable:
        return usable, sides
    print("sizes: " + format_most_common(sizes, lambda size: f"{size[0]}x{size[1]}"))
    print("pixels: " + format_most_common(modes, str))
    if set(modes) <= {"1", "L", "LA", "I", "I;16"} and channels > 1:
        print("  none is in colour: --data.grey trains on them as they are")
    groups = [list(names) for names in names_by_pixels.values() if len(names) > 1]
    duplicates = sum(len(names) - 1 for names in groups)
    print(f"duplicates: {quantity(duplicates, 'image')} equal to an earlier one")
    for names in groups[:SHOWN]:
        print(f"  {', '.join(names[:SHOWN])}")
    return usable, sides


def _report_captions(captions: list[str], image_count: int) -> None:
    """Print how many captions there are, how long they are, and the most frequent ones."""
    words = sorted(len(caption.split()) for caption in captions)
    distinct = len(set(captions))
    per_image = len(captions) / image_count
    per_caption = len(captions) / distinct
    print(f"captions: {len(captions)} ({per_image:.1f} per image), {distinct} distinct ({per_caption:.1f} images each)")
    print(f"  words: {words[0]} to {words[-1]}, median {words[len(words) // 2]}")
    print("  most frequent: " + format_most_common(Counter(captions), repr))
    print(f"  longest: {max(captions, key=len)[:200]!r}")


def _draw_pictures(out: Path, records: list[Record], size: int, channels: int, config: SourceConfig) -> None:
    """Write the contact sheet, of images from all over the source, and the charts of the captions."""
    count = min(GRID, len(records))
    sample = [records[i * len(records) // count] for i in range(count)]
    pictures = [decode_image(record, size, channels, config.fit).transpose(1, 2, 0) for record in sample]
    save_png(out / "grid.png", draw_contact_sheet(pictures, [record.captions[0] for record in sample]))
    captions = [caption for record in records for caption in record.captions]
    words = Counter(word for caption in captions for word in re.findall(r"\w+", caption.lower()))
    charts = [
        draw_bars("captions by their number of words", bin_counts([len(caption.split()) for caption in captions])),
        draw_bars("captions by their number of characters", bin_counts([len(caption) for caption in captions])),
    ]
    if words:  # captions may consist of signs alone
        charts.append(draw_bars("captions' most frequent words", words.most_common(WORDS)))
    save_png(out / "captions.png", join_pictures(charts))
    print(f"pictures: {out / 'grid.png'} (images), {out / 'captions.png'} (their captions)")


def format_most_common(counts: Counter, show: Callable[[object], str]) -> str:
    """ "32x32 (60000), 28x28 (3), and 7 others"."""
    items = ", ".join(f"{show(key)} ({count})" for key, count in counts.most_common(SHOWN))
    others = len(counts) - SHOWN
    return f"{items}, and {quantity(others, 'other')}" if others > 0 else items


def main(argv: Sequence[str] | None = None) -> None:
    named = read_early_options(argv)
    data = SourceConfig()
    if named.checkpoint:
        data = inherit_source(Path(named.checkpoint), data, named.data)
    options = parse(InspectOptions, __doc__, InspectOptions(data=data), argv)
    refuse_second_source(options.source, named.data)
    inspect_source(options)
