"""The shards of a stream: files of rows, here or on other machines, by the split that they belong to."""

import glob
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data.file_patterns import expand_braces, match_files
from data.folder_files import list_files
from data.hugging_face import group_files_by_split
from data.problems import Problems
from data.source_config import SourceConfig
from data.splits import SPLIT_NAMES
from data.stream.fetching import is_remote, read_start
from unclip.errors import UserError, reason

SUFFIXES = (".tar", ".parquet", ".arrow")
"""How the names of shards end; where there are several kinds, the first is read."""
HUB = "hf://datasets/"
START = 512
"""First bytes of each shard that enter the fingerprint."""
PROBES = 32
"""Shards that are looked at at once."""


class Shard(NamedTuple):
    """A file of rows."""

    name: str
    """Its path below the folder, data set of the Hub, or else the common folder of all shards, without a suffix: the
    first half of its rows' keys."""
    address: str
    """A path, or an address with a protocol."""


class ShardList(NamedTuple):
    """The shards of each split."""

    train: list[Shard]
    held_out: dict[str, list[Shard]]
    """The shards of validation and of test, if their names say so. Those of only one of the two serve for both."""


def list_shards(config: SourceConfig, problems: Problems) -> ShardList:
    """List the shards of a source. Raises UserError if there are none."""
    source = config.source
    addresses = _list_addresses(source, problems)
    suffix = next((s for s in SUFFIXES if any(_suffix(a) == s for a in addresses)), None)
    if suffix is None:
        raise UserError(
            f"{source} names no shards; --data.stream reads {', '.join(SUFFIXES)}: a file, a folder, a pattern, "
            "addresses (https://, s3://, hf://), a .txt with one of these per line, or owner/name on the Hub"
        )
    addresses = [address for address in addresses if _suffix(address) == suffix]
    roots = (f"{Path(source)}/", f"{HUB}{source}/", _common_folder(addresses))
    root = next(root for root in roots if all(address.startswith(root) for address in addresses))
    shards = {}
    for address in addresses:
        shard = Shard(address.removeprefix(root)[: -len(suffix)], address)
        shards[f"{shard.name}{suffix}"] = shard
    return _by_split(shards, config.split, source, problems)


def fingerprint(shards: Sequence[Shard], options: dict) -> str:
    """SHA-256 of the shards' names, sizes and first bytes, and of the options by which they are read.

    Raises UserError for a shard that is missing, empty or out of reach.
    """
    with ThreadPoolExecutor(PROBES) as threads:
        starts = list(threads.map(lambda shard: read_start(shard.address, START), shards))
    entries = [
        [shard.name, size, hashlib.sha256(start).hexdigest()]
        for shard, (size, start) in zip(shards, starts, strict=True)
    ]
    return hashlib.sha256(json.dumps([entries, options]).encode()).hexdigest()


def _list_addresses(source: str, problems: Problems) -> list[str]:
    """The files that a source names, of whatever kind."""
    path = Path(source)
    if path.is_dir():
        files, refused = list_files(path, SUFFIXES, SUFFIXES)
        for file, why in refused.items():
            problems.add(str(file.relative_to(path)), why)
        return [str(file) for file in files]
    if path.is_file() and path.suffix.lower() == ".txt":
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        return [line if is_remote(line) else str(path.parent / line) for line in lines if line]
    if path.is_file():
        return [source]
    if is_remote(source):
        return [shard for address in expand_braces(source) for shard in _match_remote(address)]
    if files := match_files(source):
        return [str(file) for file in files]
    if path.exists() or source.count("/") != 1:
        raise UserError(f"there is no data set {source!r} to stream; see --data.stream in data/stream/README.md")
    return _match_remote(f"{HUB}{source}/**")


def _match_remote(address: str) -> list[str]:
    """The addresses that one with a wildcard stands for; that of a file stands for itself."""
    if not glob.has_magic(address):
        return [address]
    import fsspec  # slow to import

    try:
        system, path = fsspec.url_to_fs(address)
        return [system.unstrip_protocol(match) for match in sorted(system.glob(path))]
    except Exception as error:  # networks and their libraries raise many kinds
        raise UserError(
            f"{address} cannot be listed ({reason(error)}); name its files, or check the network"
        ) from error


def _by_split(shards: dict[str, Shard], split: str | None, source: str, problems: Problems) -> ShardList:
    """Shards by file name -> by the split that the names say; all are for training if they say none."""
    if len(shards) == 1:
        return ShardList(list(shards.values()), {})
    names = group_files_by_split([Path(name) for name in shards], Path(), problems)
    if split is not None:
        if split not in names:
            raise UserError(f"{source} has no split {split}; name one of {', '.join(names)} with --data.split")
        names = {"train": names[split]}
    if len(names) == 1:
        return ShardList([shards[name] for name in next(iter(names.values()))], {})
    grouped: dict[str, list[Shard]] = {}
    for name, files in names.items():
        if name in SPLIT_NAMES:
            grouped.setdefault(SPLIT_NAMES[name], []).extend(shards[file] for file in files)
        else:
            problems.add(f"split {name}", "is not used; name a split with --data.split", len(files))
    train = grouped.pop("train", [])
    if not train:
        raise UserError(f"{source} has no shards for training, only for {', '.join(names)}")
    return ShardList(train, grouped)


def _common_folder(addresses: Sequence[str]) -> str:
    """The folder that the addresses share, with the slash at its end."""
    folders = {address[: address.rfind("/") + 1] for address in addresses}
    shortest = min(folders, key=len)
    while not all(folder.startswith(shortest) for folder in folders):
        shortest = shortest[: shortest.rstrip("/").rfind("/") + 1]
    return shortest


def _suffix(address: str) -> str:
    return PurePosixPath(address).suffix.lower()
