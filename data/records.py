"""Captioned images from anywhere. A source lists records; here they are checked, split, decoded and numbered.

Rows that cannot be used are never lost in silence: they are counted and named, or refused (`Problems`).
"""

import ast
import contextlib
import hashlib
import json
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from data.dataset import CaptionedImages, ListedCaptions
from data.fashion_mnist_captions import article
from unclip.errors import UserError, reason
from unclip.images import upright
from unclip.store.files import (
    file_sha256,
    make_folder,
    partial_name,
    read_record,
    remove_leftovers,
    write_atomically,
    write_record,
)

SPLITS = ("train", "validation", "test")
SHARE = 0.05
"""Of a source without splits of its own, what goes to validation, and as much to test."""
FEWEST = 10
"""Images of a split at least: the preview grids show so many."""
SHOWN = 5
"""Problems that are printed; the others are written to a file."""
CACHE = Path(os.environ.get("UNCLIP_CACHE") or Path(__file__).resolve().parent / "cache")
"""What is decoded or embedded once."""
MEMORY = 2**30
"""Bytes of decoded images that are kept in memory; more are kept in a file, which is read as it is needed."""
WAITING = 64
"""Images that are decoded ahead, a worker."""

SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "dev"), "validation")
SPLIT_NAMES |= {"training": "train", "testing": "test"}
"""What sources call their splits."""

CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
"""What text does not hold."""

warnings.filterwarnings("ignore", module=r"PIL\.")  # of large images, and of notes in them: what is broken is reported

Fit = Literal["crop", "pad", "stretch"]


class Columns(NamedTuple):
    """Which columns of a table hold what."""

    image: str = "image"
    """Of the images, or of the names of their files."""
    caption: str = "text"


class Record(NamedTuple):
    """An image that is not read yet, and all that is said of it."""

    name: str
    """What messages call it: a file's name, or a row's number."""
    open: Callable[[], Image.Image]
    captions: tuple[str, ...]
    label: int | None = None
    split: str | None = None
    """The split that the source puts it in, if it has any."""
    version: str = ""
    """Changes when the image does, as a file's time and size do."""


class Listing(NamedTuple):
    """What a source holds."""

    records: list[Record]
    classes: tuple[str, ...] = ()
    """Names of the classes, if the records are labelled."""
    size: int | None = None
    """Height and width of its images, where all are squares of one size."""


@dataclass
class Problems:
    """Rows that cannot be used, and why."""

    source: str
    found: dict[tuple[str, str], int] = field(default_factory=dict)
    """Name and reason, and how many rows each stands for; what is found twice counts once."""
    notes: dict[str, str] = field(default_factory=dict)
    """By kind, the first case of what is used, but read otherwise than its letters say."""

    def add(self, name: str, why: str, rows: int = 1) -> None:
        self.found[" ".join(printable(name).split("\n")), " ".join(printable(why).split("\n"))] = rows

    def note(self, kind: str, text: str) -> None:
        self.notes.setdefault(kind, printable(text))

    def report(self, strict: bool) -> None:
        """Print the notes, a count and the first few rows; the rest goes into a file.

        Raises UserError instead if there are rows that cannot be used and `strict` is set.
        """
        print("".join(f"{self.source}: {text}\n" for text in self.notes.values()), end="")
        if not self.found:
            return
        lines, count = [f"{name}: {why}" for name, why in self.found], sum(self.found.values())
        rows = f"{counted(count, 'row')} of {self.source} cannot be used"
        if strict:
            raise UserError(f"{rows}, the first is {lines[0]}; mend what is wrong, or leave out --data.strict")
        print(f"{rows} and {'is' if count == 1 else 'are'} left out:")
        print("".join(f"  {line}\n" for line in lines[:SHOWN]), end="")
        if len(lines) > SHOWN:
            path = CACHE / "problems" / f"{hashlib.sha256(self.source.encode()).hexdigest()[:16]}.txt"
            write_atomically(path, "\n".join(lines) + "\n")
            print(f"  ... all of them are named in {path}")


def counted(count: int, noun: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Text that can be printed and written: of what is not Unicode, as in names that are not UTF-8, the code."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_captions(value: object, problems: Problems) -> tuple[str, ...]:
    """One caption or several, without those that say nothing or are not Unicode text, each once.

    A number is taken for its digits. Text that is a list, as tables without lists write several captions, is read as
    one, which is noted.
    """
    several = value.tolist() if isinstance(value, np.ndarray) else value
    several = several if isinstance(several, (list, tuple)) else [several]
    several = [one for one in several if isinstance(one, (str, int, float)) and not isinstance(one, bool)]
    text = []
    for one in (str(one).strip() for one in several if one == one):  # NaN is not a caption
        listed = _listed(one)
        if listed is not None:
            problems.note("lists", f"text such as {one[:60]} is read as a list of captions")
        text += [one] if listed is None else listed
    return tuple(dict.fromkeys(one for one in text if _says_something(one)))


def _says_something(text: str) -> bool:
    """Whether text is Unicode without control characters, and not of blanks alone, some of which have no width."""
    return text == printable(text) and not CONTROL.search(text) and any(one.isprintable() for one in text if one != " ")


def _listed(text: str) -> list[str] | None:
    """What a list of strings holds that is written as JSON, or as Python prints it. None for all other text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = parse(text)
            if isinstance(found, list) and all(isinstance(one, str) for one in found):
                return [one.strip() for one in found]
    return None


def class_caption(name: str) -> str:
    return f"an image of {article(name)}"


def check_column(source: object, column: str, known: Iterable[str], option: str) -> None:
    """Raise UserError, naming the option to choose it, for a column that is not among those known."""
    if column not in known:
        raise UserError(
            f"{source} has no column {column}; name one of {', '.join(map(printable, known))} with --data.{option}"
        )


def with_class_names(listing: Listing, names: Sequence[str], problems: Problems) -> Listing:
    """Captions that are nothing but the numbers of classes, put into words. Without names it is noted that they are.

    Raises UserError for names where captions are not numbers.
    """
    texts = [record.captions[0] for record in listing.records if len(record.captions) == 1]
    numbers = not listing.classes and texts and len(texts) == len(listing.records) and all(map(str.isdecimal, texts))
    if not names:
        if numbers:
            shown = ", ".join(sorted(set(texts), key=int)[:3])
            problems.note(
                "numbers",
                f"all captions are whole numbers ({shown} ...), and are used as they are; if they number classes, name "
                "those in order: --data.class-names cat,dog",
            )
        return listing
    if not numbers:
        raise UserError(f"{problems.source} has captions that are not class numbers; leave --data.class-names out")
    records = []
    for record, number in zip(listing.records, map(int, texts), strict=True):
        if number < len(names):
            records.append(record._replace(captions=(class_caption(names[number]),), label=number))
        else:
            problems.add(record.name, f"has the class {number}, but there are {len(names)} names, for 0 and up")
    return listing._replace(records=records, classes=tuple(names))


def common_size(records: Sequence[Record], fit: Fit, largest: int) -> int | None:
    """Pixels per side of images that all have one size, of at most `largest`; None for others.

    Of images that are not squares it is the side that is neither cut nor filled. Only the files' heads are read.
    """
    size = None
    for record in records:
        try:
            with record.open() as image:
                found = image.size
        except Exception:  # what cannot be read is reported where it is decoded
            continue
        size = size or found
        if found != size or max(found) > largest:
            return None
    return size and (min(size) if fit == "crop" else max(size))


def own_splits(records: Sequence[Record]) -> set[str]:
    """Which of validation and test a source has of its own."""
    return {record.split for record in records} & {"validation", "test"}


def split_records(records: Sequence[Record], split: str) -> list[Record]:
    """The records of a split: as the source says, or 5% for validation, 5% for the test, and the rest to train on.

    Which goes where depends on the hashes of the names, so that hardly any moves when others are added.
    """
    if own := own_splits(records):
        if split != "train" and split not in own:  # the one serves as the other
            split = own.pop()
        return [record for record in records if (record.split or "train") == split]
    names = sorted((record.name for record in records), key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(FEWEST, round(SHARE * len(names)))
    parts = {"test": names[:count], "validation": names[count : 2 * count], "train": names[2 * count :]}
    chosen = set(parts[split])
    return [record for record in records if record.name in chosen]


def loaded(image: Image.Image, channels: int) -> Image.Image:
    """An opened image read to its end, as `upright` gives it.

    Raises what Pillow raises for a broken image, and UserError for pixels whose range cannot be known.
    """
    image.load()
    if image.mode.startswith("I") and 0 < (brightest := int(np.asarray(image).max())) < 4096:
        raise UserError(f"of 16 bits its pixels use 12 or fewer, as they reach {brightest}; scale them to 0 .. 65535")
    return upright(image, channels)


def unreadable(error: Exception) -> str:
    """Why an image is left out, from what opening it raised."""
    if isinstance(error, UnidentifiedImageError):  # whose own words are an object's address, or the path again
        return "cannot be read as an image (it is in no format that Pillow knows)"
    if isinstance(error, Image.DecompressionBombError):
        return "has more pixels than are safe to decode; scale it down"
    return f"cannot be read as an image ({reason(error)})"


def decode(record: Record, size: int, channels: int, fit: Fit) -> np.ndarray:
    """uint8 (channels, size, size). Raises what Pillow raises for a broken image, or a UserError.

    "crop" takes the middle square, "pad" adds white to make one, "stretch" changes the aspect; then Pillow's bicubic
    filter brings it to the size. A JPEG is decoded at a fraction of its size where that suffices.
    """
    with record.open() as image:
        image.draft(None, (size, size))
        image = loaded(image, channels)
    target = (size, size)
    if image.size == target:
        pass
    elif fit == "crop":
        image = ImageOps.fit(image, target)
    elif fit == "pad":
        image = ImageOps.pad(image, target, color="white")
    else:
        image = image.resize(target)
    return np.ascontiguousarray(np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1))


def decoded(records: Sequence[Record], size: int, channels: int, fit: Fit) -> Iterator[np.ndarray | str]:
    """Every record's image, or why it cannot be read; in their order, decoded ahead on all cores."""

    def attempt(record: Record) -> np.ndarray | str:
        try:
            return decode(record, size, channels, fit)
        except Exception as error:  # Pillow raises many kinds for broken files
            return unreadable(error)

    workers, rest = os.cpu_count() or 1, iter(records)
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes and resizes outside of the interpreter's lock
        waiting = deque(pool.submit(attempt, record) for record in islice(rest, WAITING * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(attempt, record) for record in islice(rest, 1))


def readable(records: Sequence[Record], size: int, channels: int, fit: Fit, problems: Problems) -> list[Record]:
    """Those that can be decoded; the others are added to `problems`."""
    kept = []
    for record, result in zip(records, decoded(records, size, channels, fit), strict=True):
        if isinstance(result, str):
            problems.add(record.name, result)
        else:
            kept.append(record)
    return kept


def collect(
    name: str, records: Sequence[Record], size: int, channels: int, fit: Fit, problems: Problems
) -> tuple[Tensor, list[Record]]:
    """Decode records: images uint8 (N, channels, size, size), and the records that they are of.

    What cannot be read is added to `problems` and left out. Few images are kept in memory; many are decoded once into a
    file in data/cache, which is read as batches ask for it: both give the same batches.
    """
    shape = (len(records), channels, size, size)
    if np.prod(shape, dtype=np.int64) <= MEMORY:
        images = np.empty(shape, np.uint8)
        bad = _fill(images, name, records, fit)
    else:
        images, bad = _filled_file(shape, name, records, fit)
    for row, why in bad.items():
        problems.add(records[row].name, why)
    kept = [record for row, record in enumerate(records) if row not in bad]
    return torch.from_numpy(images[: len(kept)]), kept


def _fill(images: np.ndarray, name: str, records: Sequence[Record], fit: Fit) -> dict[int, str]:
    """Decode records into the first of the images. Returns the rows that cannot be read, and why."""
    bad, kept = {}, 0
    _, channels, size, _ = images.shape
    results = decoded(records, size, channels, fit)
    for row, result in enumerate(tqdm(results, f"decoding {name}", len(records), leave=False, disable=None)):
        if isinstance(result, str):
            bad[row] = result
        else:
            images[kept] = result
            kept += 1
    return bad


def _filled_file(
    shape: tuple[int, ...], name: str, records: Sequence[Record], fit: Fit
) -> tuple[np.ndarray, dict[int, str]]:
    """The same in a file that later runs find again, as long as no record's version changes."""
    key = hashlib.sha256(json.dumps([shape, name, fit, [(r.name, r.version) for r in records]]).encode())
    path = CACHE / f"images-{key.hexdigest()[:16]}.npy"
    notes = path.with_suffix(".json")
    make_folder(CACHE)
    remove_leftovers(CACHE)
    if (bad := _intact(path, notes)) is None:
        temporary = partial_name(path)
        try:
            images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            bad = {str(row): why for row, why in _fill(images, name, records, fit).items()}
            images.flush()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        write_record(notes, {"sha256": file_sha256(path), "bad": bad})
    bad = {int(row): why for row, why in bad.items()}
    return np.load(path, mmap_mode="c"), bad  # "c": torch wants what can be written to; the file stays as it is


def _intact(path: Path, notes: Path) -> dict[str, str] | None:
    """The notes of a file of images that is there and as it was written, else None."""
    if not (notes.is_file() and path.is_file()):
        return None
    try:
        record = read_record(notes)
        if record["sha256"] == file_sha256(path):
            return record["bad"]
        why = f"{path} has changed"
    except (UserError, KeyError) as error:
        why = reason(error)
    print(f"{why}: decoding the images again")
    return None


def captioned(name: str, images: Tensor, records: Sequence[Record], classes: Sequence[str] = ()) -> CaptionedImages:
    """Number the captions of decoded records; an image with several has one of them drawn at each step."""
    ids: dict[str, int] = {}
    rows = [[ids.setdefault(caption, len(ids)) for caption in record.captions] for record in records]
    counts = torch.tensor([len(row) for row in rows])
    table = torch.zeros(len(rows), int(counts.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        table[i, : len(row)] = torch.tensor(row)

    data = CaptionedImages(name, images, ListedCaptions(list(ids), table, counts))
    if not classes:
        return data
    data.labels = torch.tensor([record.label for record in records])
    data.classes = tuple(classes)
    phrasings: list[dict[str, None]] = [{} for _ in classes]
    for record in records:
        phrasings[record.label] |= dict.fromkeys(record.captions)
    data.class_captions = tuple(map(class_caption, classes))
    data.class_prompts = tuple(tuple(own) or (c,) for own, c in zip(phrasings, data.class_captions, strict=True))
    return data
