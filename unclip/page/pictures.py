"""Open the image files that visitors upload, and serve them: images alone, of bounded size."""

import io
import os
import re
from contextlib import suppress
from pathlib import Path

from PIL import Image

from unclip.errors import UserError
from unclip.image_opening import explain_unreadable, load_image, open_image
from unclip.images import png_bytes
from unclip.pixels import read_colours
from unclip.store.checksums import sha256
from unclip.store.files import write_atomically

PickedFile = str | Path | io.BytesIO | None
"""The file of the image that a visitor picked, if any."""
MOST_PIXELS = 4096 * 4096
NAME = re.compile(r"[0-9a-f]{64}")
"""Names of the folders of images: SHA-256 of their content."""
PREVIEW = 1024
"""Longest side of an image as it is served, in pixels."""


def open_picked(file: PickedFile) -> Image.Image:
    """Read the image that a visitor picked. Raises UserError if there is none, or if it cannot be read."""
    if file is None:
        raise UserError("no image; drop one on the page, or click an example")
    try:
        image = open_image(Path(file) if isinstance(file, str) else file)
        size = f"{image.width}x{image.height}"
        if image.width * image.height > MOST_PIXELS:
            raise UserError(f"it has {size} pixels, and the page takes up to 4096x4096; make it smaller")
        return load_image(image)
    except UserError as error:
        raise UserError(f"this image {explain_unreadable(error)}") from error
    except Exception as error:  # Pillow raises many kinds for broken files
        raise UserError("this file is no image that can be read; choose another, such as a PNG or a JPEG") from error


def is_within(path: object, folder: str | Path) -> bool:
    """Whether a path names a file in a folder or below, without links on the way."""
    if not isinstance(path, str | Path):
        return False
    path = Path(path)
    try:
        return path.is_absolute() and path.is_file() and path.resolve() == path and path.is_relative_to(folder)
    except (OSError, ValueError):
        return False


def preview(path: str, folder: str) -> bytes:
    """An image of a folder as a PNG of at most PREVIEW pixels a side. Raises UserError for anything else."""
    if not is_within(path, folder):
        raise UserError("the page serves images alone that it shows")
    image = read_colours(open_picked(path), 3)
    image.thumbnail((PREVIEW, PREVIEW))
    return png_bytes(Image.frombytes(image.mode, image.size, image.tobytes()))  # the pixels, and nothing beside them


def store(image: Image.Image, folder: str) -> str:
    """Write an image into a folder, under the name of its content. Returns the file.

    It is written atomically, as another visitor's browser may be loading the same one.
    """
    content = png_bytes(image)
    file = Path(folder) / sha256(content) / "image.png"
    if not file.is_file():
        write_atomically(file, content, durable=False)
    return str(file)


def find_stored(name: str, folder: str) -> str:
    """The image of a folder that `store`, or an upload, has put under this name. Raises UserError for any other."""
    files = list((Path(folder) / name).glob("*")) if NAME.fullmatch(name) else []
    if not files or not is_within(files[0], folder):
        raise UserError("the image of this link is no longer here; choose another")
    return str(files[0])


def trim(folder: Path, keep: set[str], most: int) -> None:
    """Delete the oldest files of a folder, except those to keep, until it holds at most `most` bytes."""
    files: list[tuple[os.stat_result, Path]] = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # other uploads move their files meanwhile
                files.append((Path(parent, name).stat(), Path(parent, name)))
    size = sum(status.st_size for status, _ in files)
    for status, path in sorted(files, key=lambda file: file[0].st_mtime):
        if size <= most:
            break
        if str(path) not in keep:
            path.unlink(missing_ok=True)
            size -= status.st_size
