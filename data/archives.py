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

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz")


def unpack_archive(archive: Path) -> Path:
    """The folder, or the shard, that an archive holds. Raises UserError for a damaged or an encrypted archive."""
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {status.st_mtime_ns} {status.st_size}".encode()).hexdigest()
    is_zip = archive.suffix.lower() == ".zip"
    target = paths.CACHE / f"unpacked-{key[:16]}{'' if is_zip else '.tar'}"
    if not target.exists():
        make_folder(target.parent)
        remove_leftovers(target.parent)
        print(f"unpacking {archive} to {target}")
        temporary = partial_name(target)
        try:
            if is_zip:
                _unpack_zip(archive, temporary)
            else:
                _unpack_gzip(archive, temporary)
            os.replace(temporary, target)
        except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
            raise UserError(f"{archive} cannot be unpacked ({reason(error)}); fetch it again, or unpack it") from error
        finally:
            _remove(temporary)
    return _innermost_folder(target) if is_zip else target


def _unpack_zip(archive: Path, target: Path) -> None:
    target.mkdir()
    with zipfile.ZipFile(archive) as file:
        file.extractall(target)  # names with ../ stay inside the target


def _unpack_gzip(archive: Path, target: Path) -> None:
    with gzip.open(archive) as packed, open(target, "xb") as file:
        shutil.copyfileobj(packed, file)


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
