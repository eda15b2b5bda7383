"""Which run a folder holds, and whether another command means the same one."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from unclip.checkpoint import Manifest
from unclip.errors import UserError
from unclip.files import read_json, write_json


def settings(config: Any) -> dict[str, Any]:
    """What of a trainer's config tells two runs apart: all fields but those that are `unclip.fields.free`."""
    told = [item.name for item in fields(config) if item.metadata.get("identity", True)]
    values = {name: getattr(config, name) for name in told}
    return {name: settings(value) if is_dataclass(value) else value for name, value in values.items()}


def check_same_run(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder's run has ended. Records the settings of a new run in train/run.json.

    Raises UserError if the folder holds a run with other settings.
    """
    wanted = {key: getattr(manifest, key) for key in ("model", "parents", "data", "training")}
    wanted = json.loads(json.dumps(wanted))  # as it reads after a round trip: tuples are lists
    record, weights = folder / "train" / "run.json", folder / "config.json"
    if not weights.exists() and not (folder / "train" / "state.safetensors").exists():
        write_json(record, wanted)  # also over that of a run that failed before it saved anything
        return False
    earlier = read_json(weights if weights.exists() else record)
    found = _flatten(earlier)
    for key, value in _flatten(wanted).items():
        if found.get(key) != value:
            raise UserError(
                f"{folder} holds a run with {key.removeprefix('training.')} = {found.get(key)}, not {value}; "
                f"choose another --out, or delete {folder} to train it anew"
            )
    return earlier.get("complete", False)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training": {"lr": 1}} -> {"training.lr": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
