"""The files of a folder that may be read: regular files, and nothing that leads out of the folder.

A folder may come from a stranger. Reading a pipe would wait for ever, a link could lead to the whole disk, and a link
in the place of a text could put any file of this machine into the captions. Links to single images are followed
wherever they lead, as data sets are often put together from them; they are read as images, or not at all.
"""

import os
import stat
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple


class FolderFiles(NamedTuple):
    """Files below a folder, sorted, and those that are not read, each with the reason."""

    files: list[Path]
    refused: dict[Path, str]


def list_files(
    folder: Path, suffixes: Container[str], linked_suffixes: Container[str] = (), depth: int | None = None
) -> FolderFiles:
    """The files at any depth whose suffixes, in lower case, are among `suffixes`; hidden ones are left out.

    A link to nothing counts as a file, whose absence is noticed when it is read.

    Args:
        linked_suffixes: those of files that may be links out of the folder.
        depth: how many folders deep to look.
    """
    files = []
    refused = {}
    roots = _real_roots(folder)

    def refuse_unreadable(error: OSError) -> None:
        refused[Path(error.filename)] = f"cannot be read ({error.strerror})"

    for place, folders, names in os.walk(folder, onerror=refuse_unreadable):  # it enters no links
        folders[:] = sorted(name for name in folders if not is_hidden_name(name))
        for path in (Path(place, name) for name in folders):
            if path.is_symlink() and not _leads_inside(path, roots):
                refused[path] = f"is a link to {os.path.realpath(path)}, out of the folder; give that one, or copy it"
        if depth is not None and len(Path(place).relative_to(folder).parts) >= depth:
            folders.clear()
        for path in (Path(place, name) for name in names if not is_hidden_name(name)):
            suffix = path.suffix.lower()
            if suffix not in suffixes:
                continue
            if not (is_regular_file(path) or not path.exists()):
                refused[path] = "is not a regular file"
            elif path.is_symlink() and suffix not in linked_suffixes and not _leads_inside(path, roots):
                refused[path] = f"is a link to {os.path.realpath(path)}, out of the folder; copy the file"
            else:
                files.append(path)
    return FolderFiles(sorted(files), refused)


def is_regular_file(path: Path) -> bool:
    """Whether a path leads to a file, and not to a folder, a pipe, a device, a socket, or nothing."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # a name that no file can have
        return False


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether programs keep a path below `folder` for themselves: .git, or __MACOSX in an archive."""
    return any(map(is_hidden_name, path.relative_to(folder).parts))


def is_hidden_name(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _real_roots(folder: Path) -> list[str]:
    """The folders that links may lead to: the folder itself, and that of the files of a snapshot in the Hub's cache."""
    roots = [os.path.realpath(folder)]
    if folder.parent.name == "snapshots":
        roots.append(os.path.realpath(folder.parent.parent / "blobs"))
    return roots


def _leads_inside(path: Path, roots: list[str]) -> bool:
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(root) for root in roots)
