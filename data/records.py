"""Records: the common form in which every source lists its captioned images, before any image is read."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data.problems import Problems
from unclip.errors import UserError


class Record(NamedTuple):
    """An image that is not read yet, with its captions."""

    name: str
    """The name in messages: that of a file, or the number of a row."""
    open: Callable[[], Image.Image]
    captions: tuple[str, ...]
    label: int | None = None
    split: str | None = None
    """The split that the source puts it in, if the source has splits."""
    version: str = ""
    """Changes whenever the image does, see `file_version`."""


class Listing(NamedTuple):
    """The content of a source, all splits together."""

    records: list[Record]
    classes: tuple[str, ...] = ()
    """Names of the classes, if the records are labelled."""
    size: int | None = None
    """Height and width of the images if all are squares of one size."""
    channels: int | None = None
    """Channels of the images if the source allows no other number."""


class Columns(NamedTuple):
    """The names of the columns of a table."""

    image: str = "image"
    """Holds images, or the names of their files."""
    caption: str = "text"

    def find_image(self, source: object, known: Iterable[str], problems: Problems) -> str:
        """The known column of the images, see `_find_column`."""
        return _find_column(source, self.image, IMAGE_COLUMNS, known, "image-column", problems)

    def find_caption(self, source: object, known: Iterable[str], problems: Problems) -> str:
        """The known column of the captions, see `_find_column`."""
        return _find_column(source, self.caption, CAPTION_COLUMNS, known, "caption-column", problems)


IMAGE_COLUMNS = (
    "image", "file_name", "filename", "image_name", "image_file", "image_path", "file_path", "filepath", "path",
    "file", "img", "jpg", "png", "webp",
)  # fmt: skip
CAPTION_COLUMNS = ("text", "caption", "captions", "comment", "description", "prompt")
"""The default name of a column, and others that people give to it, which are taken where the default is missing."""


def _find_column(
    source: object, column: str, names: tuple[str, ...], known: Iterable[str], option: str, problems: Problems
) -> str:
    """The column itself, or if it is the default and missing, the first of its other names that is known.

    Other names than the usual ones are noted. Raises UserError if there is none; it names the option that chooses one.
    """
    by_lower_case = {name.lower(): name for name in known}
    if column in by_lower_case.values():
        return column
    other = next((by_lower_case[name] for name in names if name in by_lower_case), None) if column == names[0] else None
    if other is None:
        missing = " or ".join(names[:2]) if column == names[0] else column
        raise UserError(f"{source} has no column {missing}; name one of {', '.join(known)} with --data.{option}")
    if other.lower() not in names[:2]:
        problems.note(option, f"column {other} is read as --data.{option}")
    return other


def file_version(path: Path) -> str:
    """A text that differs for a file that has been replaced or changed, even by one of equal size and time.

    Programs can set the time of the last modification, but not the time at which the file's entry changed.
    """
    status = path.stat()
    return f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_size}"
