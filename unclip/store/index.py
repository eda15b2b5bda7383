"""model_index.json: which parts of a pipeline are complete, the SHA-256 of their files, and how to sample.

Nothing here needs torch, so that `sample.py --help` is quick.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unclip.errors import UserError, reason
from unclip.fields import from_dict
from unclip.registry import PARTS
from unclip.settings import Sampling
from unclip.store.checksums import abbreviated, file_sha256, refuse_changed_line_endings
from unclip.store.files import write_atomically
from unclip.store.formats import FORMAT, check_format, upgrade_index
from unclip.store.manifest import Manifest, is_complete, read_manifest
from unclip.store.readme import plain_readme
from unclip.store.sealed_json import read_record, write_record

RENEW = "delete it, and give the last training command again, which writes it anew"

COMMITTED = ("fashion-mnist", "emoji")
"""Names of the pipelines that come with the project: as old as its checkout, so they are never the newest."""


def write_index(pipeline: Path, leave_out: str = "") -> None:
    """Bring model_index.json, for programs, and README.md, for people, up to date with the complete parts.

    Args:
        leave_out: a part that is about to be written: the index names only files that stay as they are.
    """
    complete = [part for part in PARTS if part != leave_out and is_complete(pipeline / part)]
    manifests = {part: read_manifest(pipeline / part) for part in complete}
    files = {f"{part}/config.json": file_sha256(pipeline / part / "config.json") for part in manifests}
    files |= {f"{part}/model.safetensors": manifest.sha256 for part, manifest in manifests.items()}
    if "clip" in manifests and (pipeline / "tokenizer.json").is_file():
        files["tokenizer.json"] = file_sha256(pipeline / "tokenizer.json")
    index = {
        "format": FORMAT,
        "files": files,
        "parts": {
            part: {"kind": m.kind, "sha256": m.sha256, "step": m.step, "figures": m.figures}
            for part, m in manifests.items()
        },
        "sampling": _current_sampling(pipeline, manifests, files),
    }
    path = pipeline / "model_index.json"
    readme = pipeline / "README.md"
    if not manifests and not path.exists():
        return
    if readme.exists() and path.exists() and _holds(path, index):
        return  # somebody may have written another README since
    write_atomically(readme, plain_readme(pipeline, manifests))
    write_record(path, index)


def _current_sampling(
    pipeline: Path, manifests: Mapping[str, Manifest], files: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Settings of sampling by part: those of its manifest, unless the index names that very manifest.

    Then those of the index stay, which may have been changed since by `unclip.store.stored_sampling.write_sampling`.
    """
    sampling = {part: manifest.sampling for part, manifest in manifests.items() if manifest.sampling}
    try:
        index = read_index(pipeline)
        for part, settings in index.get("sampling", {}).items():
            config = f"{part}/config.json"
            if part in sampling and index["files"].get(config) == files[config]:
                sampling[part] = settings
    except (UserError, AttributeError, KeyError):  # a damaged index is written anew
        pass
    return sampling


def _holds(path: Path, content: dict[str, Any]) -> bool:
    try:
        return read_record(path) == content
    except UserError:
        return False


def read_index(pipeline: Path) -> dict[str, Any]:
    """The content of model_index.json, or {} if it is not there. Raises UserError if it has changed."""
    path = pipeline / "model_index.json"
    if not path.is_file():
        return {}
    values = read_record(path, RENEW)
    check_format(values, path, RENEW)
    return upgrade_index(values)


def check_files(pipeline: Path, manifests: Mapping[str, Manifest]) -> None:
    """Raise UserError for a file of a pipeline that is not the one that model_index.json names.

    Weights are hashed when they are read: here it suffices that the manifest expects the same.
    """
    for name, expected in read_index(pipeline).get("files", {}).items():
        path = pipeline / name
        part = name.split("/")[0]
        digest = "none"
        if name.endswith("/model.safetensors"):
            digest = manifests[part].sha256 if part in manifests else expected
        elif path.is_file():
            digest = file_sha256(path)
            refuse_changed_line_endings(path, digest, expected)
        if digest != expected:
            raise UserError(
                f"{path} is not the file that model_index.json names (SHA-256 {abbreviated(digest)}, not "
                f"{abbreviated(expected)}); restore it, or give the command again that trains the {part}"
            )


def read_sampling(pipeline: Path) -> Sampling:
    """A pipeline's settings of sampling, with the library's where model_index.json names none.

    Raises UserError for settings that are unknown or out of range.
    """
    path = pipeline / "model_index.json"
    settings = read_index(pipeline).get("sampling", {})
    if not isinstance(settings, dict) or not all(isinstance(values, dict) for values in settings.values()):
        raise UserError(f'{path} holds no settings of sampling under "sampling"; restore it, or delete the entry')
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
