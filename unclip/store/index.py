"""model_index.json: which parts of a pipeline are complete, the SHA-256 of their files, and how to sample.

It names every file that we wrote to a pipeline's folder, but README.md, which is for people and has a mark of its own.
By that we know our files: others in their place are never replaced.

Nothing here needs torch, so that `sample.py --help` is quick.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unclip.errors import UserError, reason
from unclip.fields import from_dict
from unclip.registry import PARTS
from unclip.settings import Sampling
from unclip.store.checksums import abbreviated, file_sha256, refuse_changed_line_endings, sha256
from unclip.store.files import member, write_atomically
from unclip.store.formats import FORMAT, check_format, upgrade_index
from unclip.store.manifest import Manifest, is_complete, read_manifest
from unclip.store.own_files import check_ours, check_part_free, present_sha256
from unclip.store.readme import write_readme
from unclip.store.sealed_json import read_json, read_record, write_record

RENEW = "delete it, and give the last training command again, which writes it anew"

COMMITTED = ("fashion-mnist", "emoji", "cifar10")
"""Names of the pipelines that come with the project: as old as its checkout, so they are never the newest."""


@dataclass
class Index:
    """The content of model_index.json."""

    format: int
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files, by their names."""
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Kind, SHA-256, step and figures of the complete parts."""
    sampling: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of sampling, by part."""


def write_index(pipeline: Path, leave_out: str = "", files: Mapping[str, str | bytes] | None = None) -> None:
    """Bring model_index.json, for programs, and README.md, for people, up to date with the complete parts.

    A README.md that somebody else wrote, or changed, stays.

    Args:
        leave_out: a part that is about to be written: the index names only files that stay as they are.
        files: contents of files to put into the folder. The index names them before they are there, so that they are
            known as ours whenever the program ends.

    Raises UserError for a file of somebody else in the place of one of these.
    """
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in (files or {}).items()}
    new = {name: sha256(content) for name, content in contents.items()}
    listed = _listed_files(pipeline)
    for name, digest in new.items():
        if present_sha256(pipeline, name) not in ("", digest):
            check_ours(pipeline, name, listed)
            (pipeline / name).unlink()
    complete = [part for part in PARTS if part != leave_out and is_complete(pipeline / part)]
    manifests = {part: read_manifest(pipeline / part) for part in complete}
    path = pipeline / "model_index.json"
    if not manifests and not new and not path.exists():
        return
    hashes = {f"{part}/config.json": file_sha256(pipeline / part / "config.json") for part in manifests}
    hashes |= {f"{part}/model.safetensors": manifest.sha256 for part, manifest in manifests.items()}
    top_level = {name: digest for name, digest in listed.items() if "/" not in name}
    hashes |= {
        name: digest for name, digest in top_level.items() if digest and present_sha256(pipeline, name) == digest
    }
    index = {
        "format": FORMAT,
        "files": hashes | new | _examples(pipeline),
        "parts": {
            part: {"kind": m.kind, "sha256": m.sha256, "step": m.step, "figures": m.figures}
            for part, m in manifests.items()
        },
        "sampling": _current_sampling(pipeline, manifests, hashes),
    }
    if not (pipeline / "README.md").exists() or not path.exists() or read_record(path) != index:
        write_readme(pipeline, manifests)
        write_record(path, index)
    for name, content in contents.items():
        if not present_sha256(pipeline, name):
            write_atomically(pipeline / name, content)


def _current_sampling(
    pipeline: Path, manifests: Mapping[str, Manifest], files: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Settings of sampling by part: those of its manifest, unless the index names that very manifest.

    Then those of the index stay, which may have been changed since by `unclip.store.stored_sampling.write_sampling`.
    """
    sampling = {part: manifest.sampling for part, manifest in manifests.items() if manifest.sampling}
    index = read_index(pipeline)
    for part, settings in index.get("sampling", {}).items():
        config = f"{part}/config.json"
        if part in sampling and index.get("files", {}).get(config) == files[config]:
            sampling[part] = settings
    return sampling


def _listed_files(pipeline: Path) -> dict[str, str]:
    """SHA-256 of the files of ours in a pipeline's folder; that of the tokenizer is also in the manifest of CLIP."""
    clip = pipeline / "clip"
    tokenizer = read_manifest(clip).parents.get("tokenizer", "") if (clip / "config.json").is_file() else ""
    return {"tokenizer.json": tokenizer} | read_index(pipeline).get("files", {})


def _examples(pipeline: Path) -> dict[str, str]:
    """SHA-256 of the files in a pipeline's folder of examples, which people put there; links are none."""
    folder = pipeline / "examples"
    paths = [] if folder.is_symlink() else sorted(folder.glob("[!.]*"))
    return {f"examples/{path.name}": file_sha256(path) for path in paths if path.is_file() and not path.is_symlink()}


def check_free(pipeline: Path, part: str, names: Sequence[str]) -> None:
    """Raise UserError if training a part would replace somebody else's file, or write through a link.

    Args:
        names: files that the training puts into the pipeline's folder.
    """
    path = member(pipeline, "model_index.json")
    if path.is_file() and not (isinstance(values := read_json(path), dict) and "checksum" in values):
        raise UserError(f"{path} was not written by unclip; choose another --out")
    for name in (part, f"{part}/train", f"{part}/train/state.safetensors", f"{part}/train/metrics.jsonl"):
        member(pipeline, name)
    check_part_free(pipeline / part)
    if not is_complete(pipeline / part):
        for name in names:
            check_ours(pipeline, name, _listed_files(pipeline))


def read_index(pipeline: Path) -> dict[str, Any]:
    """The content of model_index.json, or {} if it is not there.

    Raises UserError if it has changed, or if it is not the content of an `Index`.
    """
    path = member(pipeline, "model_index.json")
    if not path.is_file():
        return {}
    values = read_record(path, RENEW)
    check_format(values, path, RENEW)
    try:
        values = upgrade_index(values)
    except (AttributeError, TypeError) as error:
        raise UserError(f"{path} is not the index of a pipeline ({reason(error)}); {RENEW}") from error
    from_dict(Index, values, str(path))
    return values


def check_files(pipeline: Path, manifests: Mapping[str, Manifest]) -> None:
    """Raise UserError for a file of a pipeline that is not the one that model_index.json names.

    Weights are hashed when they are read: here it suffices that the manifest expects the same.
    """
    for name, expected in read_index(pipeline).get("files", {}).items():
        path = member(pipeline, name)
        part = name.split("/")[0]
        digest = "none"
        if name.endswith("/model.safetensors"):
            digest = manifests[part].sha256 if part in manifests else expected
        elif path.is_file():
            digest = file_sha256(path)
            refuse_changed_line_endings(path, digest, expected)
        if digest != expected:
            trained = part if part in PARTS else "last part"
            raise UserError(
                f"{path} is not the file that model_index.json names (SHA-256 {abbreviated(digest)}, not "
                f"{abbreviated(expected)}); restore it, or give the command again that trains the {trained}"
            )


def read_sampling(pipeline: Path) -> Sampling:
    """A pipeline's settings of sampling, with the library's where model_index.json names none.

    Raises UserError for settings that are unknown or out of range.
    """
    path = pipeline / "model_index.json"
    settings = read_index(pipeline).get("sampling", {})
    try:
        return from_dict(Sampling, settings, str(path))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds settings of sampling that cannot be used ({reason(error)})") from error


def newest_pipeline(folder: Path) -> Path:
    """The newest of the complete pipelines in a folder, or else the committed one of Fashion-MNIST.

    Raises UserError if there is neither.
    """
    committed = folder / COMMITTED[0]
    times = {path: time_completed(path) for path in folder.glob("*/") if path.name not in COMMITTED}
    newest = max(times, key=lambda path: times[path], default=committed)
    newest = newest if times.get(newest) else committed
    if not newest.is_dir():
        raise UserError(
            f"no trained pipeline under {folder.name}/; train one with: make demo, or name one: --checkpoint DIR"
        )
    return newest


def time_completed(pipeline: Path) -> float:
    """When the training of a pipeline's last part ended, in seconds since the epoch; 0 if it is not complete."""
    configs = {name: pipeline / name / "config.json" for name, part in PARTS.items() if not part.optional}
    try:
        complete = read_index(pipeline).get("parts", {}).keys() >= configs.keys()
        return max(path.stat().st_mtime for path in configs.values()) if complete else 0.0
    except (OSError, UserError, AttributeError):
        return 0.0
