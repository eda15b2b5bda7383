"""Compressed archives, which are unpacked once into data/cache before they are read.

NAME.zip                 a folder, read as any other
NAME.tar.gz, NAME.tgz    a webdataset shard
"""

import gzip
import hashlib
import os
import shutil
import zipfile
from pathlib import Path

from data import paths
from data.records import file_version
from unclip.errors import UserError, printable, reason
from unclip.store.files import make_folder, partial_name, remove_leftovers

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz")
LARGEST_RATIO = 250
"""An archive may unpack to this many times its size. Images hardly shrink; sprites of few colours, up to 120 times."""
ALWAYS_ALLOWED = 64 * 2**20
"""Bytes that an archive of any size may unpack to."""
SMALLEST_FILE = 4096
"""Bytes that a file takes on a disk, however short it is."""
CHUNK = 2**20


def unpack_archive(archive: Path) -> Path:
    """The folder, or the shard, that an archive holds.

    Raises UserError for an archive that is damaged or encrypted, or that unpacks to more than it may or the disk holds.
    """
    key = hashlib.sha256(os.fsencode(f"{archive.resolve()} {file_version(archive)}")).hexdigest()
    is_zip = archive.suffix.lower() == ".zip"
    target = paths.CACHE / f"unpacked-{key[:16]}{'' if is_zip else '.tar'}"
    if not target.exists():
        make_folder(target.parent)
        remove_leftovers(target.parent)
        print(f"unpacking {printable(str(archive))} to {target}")
        temporary = partial_name(target)
        try:
            if is_zip:
                _unpack_zip(archive, temporary)
            else:
                _unpack_gzip(archive, temporary)
            os.replace(temporary, target)
        except UserError:
            raise
        except Exception as error:  # damaged archives raise many kinds: of their formats, of the disk, of numbers
            why = (isinstance(error, OSError) and error.strerror) or reason(error)
            raise UserError(f"{archive} cannot be unpacked ({why}); fetch it again, or unpack it") from error
        finally:
            _remove(temporary)
    return _innermost_folder(target) if is_zip else target


def check_unpacked_size(archive: Path, size: int) -> None:
    """Raise UserError if `size` bytes are more than an archive may unpack to: a few bytes can stand for thousands."""
    if size > max(ALWAYS_ALLOWED, LARGEST_RATIO * archive.stat().st_size):
        raise UserError(
            f"{archive} unpacks to more than {LARGEST_RATIO} times its size, which archives of images do not; if you "
            "trust it, unpack it, and give the folder"
        )


def _unpack_zip(archive: Path, target: Path) -> None:
    target.mkdir()
    with zipfile.ZipFile(archive) as file:
        size = sum(max(member.file_size, SMALLEST_FILE) for member in file.infolist())
        check_unpacked_size(archive, size)
        free = shutil.disk_usage(target).free
        if size > free:
            raise UserError(
                f"{archive} unpacks to {size / 1e6:.0f} MB, but {target.parent} has {free / 1e6:.0f} MB left; free "
                "some space, or name another folder with the environment variable UNCLIP_CACHE"
            )
        file.extractall(target)  # names with ../ stay inside the target; no file exceeds the size that is listed


def _unpack_gzip(archive: Path, target: Path) -> None:
    with gzip.open(archive) as packed, open(target, "xb") as file:
        while chunk := packed.read(CHUNK):
            file.write(chunk)
            check_unpacked_size(archive, file.tell())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _innermost_folder(folder: Path) -> Path:
    """The folder itself, or, while it holds nothing but one folder, that one: many archives hold one of their name."""
    content = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    if len(content) == 1 and content[0].is_dir():
        return _innermost_folder(content[0])
    return folder
