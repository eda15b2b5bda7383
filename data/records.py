"""Records: the common form in which every source lists its captioned images, before any image is read."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from PIL import Image

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
    """Changes whenever the image does, as a file's time and size do."""


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


def check_column(source: object, column: str, known: Iterable[str], option: str) -> None:
    """Raise UserError if a column is not among the known ones; the message names the option that chooses it."""
    if column not in known:
        raise UserError(f"{source} has no column {column}; name one of {', '.join(known)} with --data.{option}")
