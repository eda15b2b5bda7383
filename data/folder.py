"""Image files on disk with captions for them: a folder, or a table of file names and captions.

    metadata.jsonl, .csv, .tsv or .json    rows of file_name and text, the Hub's imagefolder convention; text may be a
                                           list, and the table may lie in a folder below
    name.jpg with name.txt                 one caption per line
    cat/name.jpg                           where there is neither: the names of the folders, "an image of a cat"
    NAME.csv, and so on                    the same rows, given as the source itself; JSON may be COCO's captions

Several rows about one image are several captions of it. Folders train, validation (or val) and test inside a folder are
the splits, if there are any.
"""

import os
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from data import tables
from data.caption_values import as_captions
from data.class_captions import class_caption
from data.problems import Problems, printable
from data.records import Columns, Listing, Record, check_column
from data.splits import SPLIT_NAMES
from unclip.errors import UserError
from unclip.store.files import check_fetched

METADATA = tuple(f"metadata{suffix}" for suffix in tables.SUFFIXES)
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif", ".jxl", ".gif", ".bmp",
    ".dib", ".ico", ".psd", ".pcx", ".tif", ".tiff", ".tga", ".qoi", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm",
    ".svg",
}  # fmt: skip
"""What is taken for an image in a folder, whether Pillow can read it or not."""

Captions = dict[Path, list[str]]
"""By file of an image; several rows may be about one. None where those that there are cannot be used."""


class Contents(NamedTuple):
    """What lies in a folder, at any depth."""

    images: list[Path]
    texts: dict[Path, Path]
    """Text files by their names without .txt."""
    metadata: list[Path]
    """One table of a folder at most."""

    def has_text(self, image: Path) -> bool:
        return image.with_suffix("") in self.texts


def read(folder: Path, columns: Columns, problems: Problems) -> Listing:
    """The records of a folder, and the names of its classes where folders are classes.

    Raises UserError if it holds no captioned images, or a table without the columns.
    """
    folder = Path(os.path.abspath(folder))  # as files are compared by their whole names, and `..` may be in this one
    contents = _contents_of_splits(folder, problems)
    captions: Captions = {}
    for table in contents.metadata:
        _add_rows(captions, table, folder, columns, problems)
    rest = [image for image in contents.images if image not in captions]
    if passed := next((image for image in captions if contents.has_text(image)), None):
        problems.note("texts", f"of images in tables no text file is read, such as {_name(passed, folder)}'s")
    labels = {} if contents.metadata or any(map(contents.has_text, rest)) else _classes(rest, folder, problems)
    for image in rest:
        name = _name(image, folder)
        if image in labels:
            captions[image] = [class_caption(labels[image])]
        elif labels:
            problems.add(name, "lies in no folder of a class")
        elif contents.has_text(image):
            captions[image] = _from_text(image, contents.texts[image.with_suffix("")], name, problems)
        elif contents.metadata:
            several = len(contents.metadata) > 1
            problems.add(name, f"is not named in {'any metadata file' if several else contents.metadata[0].name}")
        else:
            problems.add(name, f"has no {image.stem}.txt beside it")
    if labels:
        example = next(iter(captions.values()))[0]
        problems.note("classes", f"captions are made of the names of the folders: {example!r}, and so on")
    elif not contents.metadata:
        illustrated = {image.with_suffix("") for image in rest}
        for text in (text for stem, text in contents.texts.items() if stem not in illustrated):
            problems.add(_name(text, folder), "has no image beside it")
    records = _records(captions, folder, labels, problems)
    if not records:
        _explain(folder, columns, problems)
    return Listing(records, tuple(sorted(set(labels.values()))))


def read_table(path: Path, columns: Columns, problems: Problems) -> Listing:
    """The records of a table, whose files lie where it says, seen from its own folder.

    Raises UserError if it holds no rows, or lacks the columns.
    """
    path, captions = Path(os.path.abspath(path)), {}
    _add_rows(captions, path, None, columns, problems)
    records = _records(captions, path.parent, {}, problems)
    if not records and not problems.rows:
        raise UserError(f"{path} holds no rows; expected columns for the file's name and for {columns.caption}")
    return Listing(records)


def is_one(folder: Path) -> bool:
    """Whether images with captions lie in a folder."""
    contents = _contents(folder)
    tables_of_images = [table for table in contents.metadata if table.suffix != ".json"]  # which may be about anything
    return bool(tables_of_images) or any(map(contents.has_text, contents.images))


def _contents(folder: Path) -> Contents:
    files = sorted(path for path in _files(folder) if not _is_hidden(path, folder))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    contents = Contents(images, texts, [])
    paired = any(map(contents.has_text, images))  # beside which a metadata.json is often about other things
    metadata: dict[Path, Path] = {}
    for name in METADATA:
        for file in files:
            if file.name.lower() == name and not (paired and file.suffix == ".json"):
                metadata.setdefault(file.parent, file)
    return contents._replace(metadata=list(metadata.values()))


def _files(folder: Path) -> Iterator[Path]:
    """All files at any depth; what links to a folder is one, but none is entered twice."""
    entered = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        yield from (Path(place, name) for name in names)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in entered]
        entered.update(real.values())


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path is one of those that programs keep to themselves, as .git, or macOS in an archive."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)


def _contents_of_splits(folder: Path, problems: Problems) -> Contents:
    """The contents of the folders train, validation and test where there are any, and no table lies beside them."""
    contents, parts = _contents(folder), _parts(folder)
    if not parts or any(table.parent == folder for table in contents.metadata):
        return contents

    def inside(file: Path) -> bool:
        return any(file.is_relative_to(part) for part in parts)

    for image in contents.images:
        if not inside(image):
            problems.add(_name(image, folder), "lies outside of the folders of the splits")
    return Contents(
        list(filter(inside, contents.images)),
        {stem: text for stem, text in contents.texts.items() if inside(text)},
        list(filter(inside, contents.metadata)),
    )


def _parts(folder: Path) -> list[Path]:
    """The folders that are splits, in whatever case."""
    return [path for path in folder.iterdir() if path.name.lower() in SPLIT_NAMES and path.is_dir()]


def _name(file: Path, folder: Path) -> str:
    """What messages and splits call a file, wherever its folder lies."""
    return os.path.relpath(file, folder)


def _records(captions: Captions, folder: Path, labels: dict[Path, str], problems: Problems) -> list[Record]:
    Image.init()
    unknown = {suffix for suffix in SUFFIXES if Image.EXTENSION.get(suffix) not in Image.OPEN}
    numbers = {name: number for number, name in enumerate(sorted(set(labels.values())))}
    records = []
    for file, several in captions.items():
        name, suffix = printable(_name(file, folder)), file.suffix.lower()
        if not several:
            continue
        if suffix in unknown:
            problems.add(name, f"Pillow cannot read {suffix} files here; save the image as PNG or JPEG")
            continue
        state, label = file.stat(), numbers.get(labels.get(file))
        split = SPLIT_NAMES.get(name.split(os.sep)[0].lower())
        opened, version = partial(_open, file), f"{state.st_mtime_ns} {state.st_size}"
        records.append(Record(name, opened, tuple(dict.fromkeys(several)), label, split, version))
    return records


def _open(file: Path) -> Image.Image:
    """Raises what Pillow raises, and UserError for a pointer of Git LFS."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        check_fetched(file)
        raise


def _explain(folder: Path, columns: Columns, problems: Problems) -> None:
    """Raise UserError where a folder holds nothing to use, if more can be said than what is wrong with each file."""
    tables_inside = [path for suffix in tables.SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    stems = {path.stem for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    if others := [path for path in tables_inside if path.name not in METADATA and path.stem not in stems]:
        raise UserError(
            f"{folder} holds no captions where they are looked for; if they are in {others[0].name}, give "
            f"{others[0]} as the source"
        )
    if not problems.rows:
        raise UserError(
            f"{folder} holds no captioned images; expected metadata.jsonl or metadata.csv with file_name and "
            f"{columns.caption}, name.txt beside each name.jpg, or a folder of images for each class"
        )


def _add_rows(captions: Captions, table: Path, root: Path | None, columns: Columns, problems: Problems) -> None:
    """Add what a table says, with an entry for each file that it names. Under a root files elsewhere are refused."""
    table_name = _name(table, root or table.parent)
    rows = tables.rows(table, table_name, problems)
    known = dict.fromkeys(column for _, row in rows for column in row if column is not None)
    image = next((column for column in (columns.image, "file_name") if column in known), "file_name")
    if not rows and root:
        problems.add(table_name, "holds no rows")
    if rows:
        source = table if table.suffix.startswith(".json") else f"{table}, by its first line,"
        check_column(source, image, known, "image-column")
        check_column(source, columns.caption, known, "caption-column")
    folders = _beside(table)
    for where, row in rows:
        name = str(row.get(image, "")).strip()
        file = _named(table.parent, name)
        others = [] if _is_file(file) else list(filter(_is_file, (_named(folder, name) for folder in folders)))
        if name and len(others) == 1:
            file = others[0]
            problems.note("beside", f"files that {table.name} names are found in {_name(file.parent, table.parent)}")
        if name:
            captions.setdefault(file, [])
        if None in row:
            problems.add(where, "has more values than there are columns; quote captions with commas")
            continue
        if lacking := [column for column in (image, columns.caption) if column not in row]:
            problems.add(where, f"has no {lacking[0]}; its columns are {', '.join(map(str, row))}")
            continue
        if not name:
            problems.add(where, f"has an empty {image}")
            continue
        where, found = f"{where} ({name})", as_captions(row[columns.caption], problems)
        if not found:
            problems.add(where, "has no caption that is text")
        elif "://" in name:
            problems.add(where, "is a web address; download the image, and name its file")
        elif len(others) > 1:
            places = " and ".join(_name(other.parent, table.parent) for other in others)
            problems.add(where, f"the file is not beside the table, and lies in {places}; name its folder too")
        elif root and not file.is_relative_to(root):
            problems.add(where, "the file lies outside of the folder")
        elif not _is_file(file):
            problems.add(where, "the file is missing")
        else:
            captions[file].extend(found)


def _beside(table: Path) -> list[Path]:
    """The folders beside a table, in which the files may lie that it names without; of COCO's those beside its own."""
    around = table.parent.parent if table.parent.name == "annotations" else table.parent
    return sorted(path for path in around.iterdir() if path.is_dir() and not _is_hidden(path, around))


def _named(folder: Path, name: str) -> Path:
    """The file that a table means: as it is written, with Windows' separators, or in Unicode's other forms.

    Links are followed wherever they lead.
    """
    forms = (name, name.replace("\\", "/"), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    files = [Path(os.path.normpath(folder / form)) for form in forms]
    return next(filter(_is_file, files), files[0])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _from_text(file: Path, text: Path, name: str, problems: Problems) -> list[str]:
    """The captions in the text file beside an image."""
    try:
        lines = tables.read_lines(check_fetched(text).read_bytes(), "text beside images", problems)
    except UserError as error:
        problems.add(name, str(error))
        return []
    except UnicodeDecodeError as error:
        problems.add(name, f"{text.name} is not readable as text ({error.reason} at byte {error.start})")
        return []
    except OSError as error:
        problems.add(name, f"{text.name} cannot be read ({error.strerror})")
        return []
    captions = as_captions(lines, problems)
    if not captions:
        why = " that is text in UTF-8, UTF-16 or Windows-1252" if any(map(str.strip, lines)) else ""
        problems.add(name, f"{text.name} holds no caption{why}")
    elif not _is_file(file):
        problems.add(name, "the file is missing")
        return []
    return list(captions)


def _classes(images: list[Path], folder: Path, problems: Problems) -> dict[Path, str]:
    """The class of each image: the folder that it lies in, if there are two such folders at least."""
    not_classes = [folder, *_parts(folder)]
    labels = {image: image.parent.name.replace("_", " ") for image in images if image.parent not in not_classes}
    if len(set(labels.values())) == 1:
        problems.note("one class", "the names of folders can serve as captions, if there are two or more")
    return labels if len(set(labels.values())) > 1 else {}
