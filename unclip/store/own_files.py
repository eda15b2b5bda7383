"""Files of our own, and files of others in their place, which are never replaced or removed.

A file is ours if model_index.json names it with its SHA-256, or if it bears a mark: a partial name, a pending name that
holds the SHA-256 of the file, or the checksum that README.md and records hold of themselves.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from unclip.errors import UserError
from unclip.store.checksums import file_sha256
from unclip.store.files import PARTIAL, member
from unclip.store.sealed_json import read_record

PENDING = re.compile(r"model-([0-9a-f]{16})\.safetensors")
"""A pending name of weights, see `unclip.store.parts`: it holds the beginning of their SHA-256."""
MOVE = "move it, or choose another --out"


def is_pending(path: Path) -> bool:
    """Whether a file is pending weights of ours."""
    mark = PENDING.fullmatch(path.name)
    return mark is not None and file_sha256(path).startswith(mark[1])


def present_sha256(pipeline: Path, name: str) -> str:
    """The SHA-256 of a file in a pipeline's folder; "" if nothing has its name, "other" if that is no file."""
    path = member(pipeline, name)
    if path.is_file():
        return file_sha256(path)
    return "other" if os.path.lexists(path) else ""


def check_ours(pipeline: Path, name: str, listed: Mapping[str, str]) -> None:
    """Raise UserError if there is a file of this name that is not one of those `listed` with their SHA-256."""
    present = present_sha256(pipeline, name)
    if present and present != listed.get(name):
        raise UserError(f"{pipeline / name} is in the way: it is not, or no longer, as unclip wrote it; {MOVE}")


def check_part_free(folder: Path) -> None:
    """Raise UserError if the folder of a part holds files, but neither a part nor a training of ours.

    Until a training has recorded its settings, it has a lock and files that bear our marks.
    """
    train = folder / "train"
    states = (*train.glob("state*.safetensors"), *train.glob("state-*/state.json"))
    if (folder / "config.json").exists() or states:  # whoever reads them checks them
        return
    if (train / "run.json").exists():
        read_record(train / "run.json", MOVE)
        return
    for path in sorted(folder.rglob("*")):
        if not (path.is_dir() or path == train / "lock" or PARTIAL.fullmatch(path.name) or is_pending(path)):
            raise UserError(f"{path} was not written by unclip, and would lie among its files; {MOVE}")
