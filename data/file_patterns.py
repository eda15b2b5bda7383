"""Several files named at once: FOLDER/*.tar, or FOLDER/{00000..00012}.tar as webdataset writes it."""

import glob
import itertools
import os
import re
from pathlib import Path

from data.folder_files import is_regular_file

BRACES = re.compile(r"\{([^{}]*)\}")
MOST = 10**6
"""The most names that a pattern with braces may stand for."""


def match_files(pattern: str) -> list[Path]:
    """The regular files that a pattern names, sorted; none for a path that exists, and for one without a wildcard."""
    if os.path.lexists(pattern) or not (glob.has_magic(pattern) or BRACES.search(pattern)):
        return []
    names = {name for plain in expand_braces(pattern) for name in glob.glob(plain)}
    return sorted(path for path in map(Path, names) if is_regular_file(path))


def exists_locally(source: str) -> bool:
    """Whether a source is a path to something on this machine, or a pattern that names something."""
    return os.path.exists(source) or bool(match_files(source))


def expand_braces(pattern: str) -> list[str]:
    """ "{00..02}.tar" -> "00.tar", "01.tar", "02.tar"; "{a,b}.tar" -> "a.tar", "b.tar"."""
    pieces = BRACES.split(pattern)  # text and the content of braces in turn
    choices = [_expand(piece) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(choice) for choice in itertools.islice(itertools.product(*choices), MOST)]


def _expand(content: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", content)
    if not numbers:
        return content.split(",")
    first, last = numbers.groups()
    count = min(int(last), int(first) + MOST - 1)
    return [str(number).zfill(len(first)) for number in range(int(first), count + 1)]
