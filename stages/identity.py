"""Which run a folder holds, and whether another command means the same one."""

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from stages.state import has_state
from unclip.errors import UserError
from unclip.store.checkpoint import Manifest, read_manifest
from unclip.store.files import checksum, read_record, write_record


def settings(config: Any) -> dict[str, Any]:
    """What of a trainer's config tells two runs apart: all fields that affect the weights."""
    told = [item.name for item in fields(config) if item.metadata.get("affects_weights", True)]
    values = {name: getattr(config, name) for name in told}
    return {name: settings(value) if is_dataclass(value) else value for name, value in values.items()}


def run_settings(manifest: Manifest) -> dict[str, Any]:
    """What tells two runs of a stage apart, as it reads after a round trip through JSON: tuples are lists."""
    wanted = {key: getattr(manifest, key) for key in ("model", "parents", "data", "training")}
    return json.loads(json.dumps(wanted))


def run_checksum(manifest: Manifest) -> str:
    return checksum(run_settings(manifest))


def record_run(folder: Path, manifest: Manifest) -> None:
    """Note the settings of a run that begins, or goes on, in train/run.json."""
    write_record(folder / "train" / "run.json", run_settings(manifest))


def check_same_run(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder's run has ended. `record_run` says which it is.

    Raises UserError if the folder holds a run with other settings.
    """
    wanted = run_settings(manifest)
    record, weights = folder / "train" / "run.json", folder / "config.json"
    if not weights.exists() and not (has_state(folder / "train" / "state.safetensors") and record.exists()):
        return False  # a run that failed before it saved anything counts for nothing
    if weights.exists():
        earlier = asdict(read_manifest(folder))
    else:  # a state names its run too, so that the record may be missing
        earlier = read_record(record, "delete it, and give the same command again: it goes on from the saved state")
    found = _flatten(earlier)
    for key, value in _flatten(wanted).items():
        if found.get(key) != value:
            name = key.removeprefix("training.")
            raise UserError(
                f"{folder} holds a run with {name} = {found.get(key)}, not {value}; "
                + OTHERWISE.get(name, "choose another --out, or delete {folder} to train it anew").format(
                    folder=folder, value=value, pipeline=folder.parent
                )
            )
    return earlier.get("complete", False)


OTHERWISE = {
    "model.rivals": "it was trained by an earlier version, which knew no rivals. Draw from it as it is, or train on "
    "from its weights in another --out, with --init-from {pipeline}",
    "train.lr": "to change it from the last saved state on, leave --train.lr as it was and give --resume-with {value}; "
    "or choose another --out",
    "train.steps": "its learning rate was planned for that many. To train on from its weights, choose another --out, "
    "with --init-from {pipeline}; --train.steps then counts the steps to come, and --train.warmup the first of them",
}
"""What to do about a run with another value, where there is something better than a new folder."""


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training": {"lr": 1}} -> {"training.lr": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
