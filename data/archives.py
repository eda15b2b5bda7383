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
from unclip.errors import UserError, reason
from unclip.store.files import make_folder, partial_name, remove_leftovers

SUFFIXES = (".zip", ".tar.gz", ".tgz")


def unpacked(archive: Path) -> Path:
    """The folder, or the shard, that an archive holds. Raises UserError for one that is damaged or locked."""
    state = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {state.st_mtime_ns} {state.st_size}".encode()).hexdigest()
    zipped = archive.suffix.lower() == ".zip"
    target = paths.CACHE / f"unpacked-{key[:16]}{'' if zipped else '.tar'}"
    if not target.exists():
        make_folder(target.parent)
        remove_leftovers(target.parent)
        print(f"unpacking {archive} to {target}")
        temporary = partial_name(target)
        try:
            (_unzip if zipped else _gunzip)(archive, temporary)
            os.replace(temporary, target)
        except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
            raise UserError(f"{archive} cannot be unpacked ({reason(error)}); fetch it again, or unpack it") from error
        finally:
            _remove(temporary)
    return _single_folder(target) if zipped else target


def _unzip(archive: Path, target: Path) -> None:
    target.mkdir()
    with zipfile.ZipFile(archive) as file:
        file.extractall(target)  # which keeps what is named ../ inside


def _gunzip(archive: Path, target: Path) -> None:
    with gzip.open(archive) as packed, open(target, "xb") as file:
        shutil.copyfileobj(packed, file)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _single_folder(folder: Path) -> Path:
    """A folder's only content, as long as that is a folder: many archives hold one that has their name."""
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return _single_folder(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder
