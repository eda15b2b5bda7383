"""The identity of a run: which settings tell two runs apart, and whether a folder holds a run with the same ones."""

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from stages.state import has_state
from unclip.errors import UserError
from unclip.registry import PARTS, find_kind, resolve
from unclip.store.checksums import abbreviated, json_sha256
from unclip.store.manifest import Manifest, read_manifest
from unclip.store.sealed_json import read_record, write_record


def settings(config: Any) -> dict[str, Any]:
    """The fields of a trainer's config that tell two runs apart: all that affect the weights."""
    names = [item.name for item in fields(config) if item.metadata.get("affects_weights", True)]
    values = {name: getattr(config, name) for name in names}
    return {name: settings(value) if is_dataclass(value) else value for name, value in values.items()}


def run_settings(manifest: Manifest) -> dict[str, Any]:
    """All of a manifest that tells two runs apart, as it is after a round trip through JSON: tuples are lists."""
    values = {key: getattr(manifest, key) for key in ("model", "parents", "data", "training")}
    return json.loads(json.dumps(values))


def run_checksum(manifest: Manifest) -> str:
    return json_sha256(run_settings(manifest))


def record_run(folder: Path, manifest: Manifest) -> None:
    """Write the settings of a run that begins, or goes on, to train/run.json."""
    write_record(folder / "train" / "run.json", run_settings(manifest))


def check_same_run(folder: Path, manifest: Manifest) -> bool:
    """Whether the run in a folder has ended. Raises UserError if it is a run with other settings.

    Its settings are in its manifest, or in the file of `record_run` as long as it has saved no weights.
    """
    record = folder / "train" / "run.json"
    if (folder / "config.json").exists():
        present = asdict(read_manifest(folder))
    elif has_state(folder / "train" / "state.safetensors") and record.exists():
        present = read_record(record, "delete it, and give the same command again: it goes on from the saved state")
    else:  # the run saved nothing, or has a state alone, which names its run too
        return False
    present_settings = flatten_settings(present)
    given_settings = flatten_settings(run_settings(manifest))
    for key, value in {"parents.start": None, **given_settings}.items():
        before = present_settings.get(key)
        if key == "parents.start":
            before = _start_of(before)
            value = _start_of(given_settings.get(key))
        if before != value:
            name = NAMES.get(key, key.removeprefix("training."))
            advice = ADVICE.get(name, "choose another --out, or delete {folder} to train it anew")
            preset = nearest_preset(manifest, present_settings)
            if preset not in (None, nearest_preset(manifest, given_settings)):
                advice = PRESET_ADVICE
            raise UserError(
                f"{folder} holds a run with {name} = {before}, not {value}; "
                + advice.format(folder=folder, value=value, pipeline=folder.parent, preset=preset)
            )
    return present.get("complete", False)


def _start_of(digest: str | None) -> str:
    """The weights that a run started from, in words."""
    return f"the weights {abbreviated(digest)}" if digest else "none"


def nearest_preset(manifest: Manifest, flat_settings: dict[str, Any]) -> str | None:
    """The preset with the fewest settings that differ from a run's; None for what has no presets.

    Args:
        manifest: its part and its kind are the run's.
        flat_settings: the settings of the run, as `flatten_settings` returns them.
    """
    if manifest.part not in PARTS:
        return None
    differences = {}
    for name, preset in resolve(find_kind(manifest.part, manifest.kind).presets).items():
        values = {"model": asdict(preset.model), "training": settings(preset)}
        of_preset = flatten_settings(json.loads(json.dumps(values)))
        differences[name] = sum(flat_settings.get(key) != value for key, value in of_preset.items())
    return min(differences, key=lambda name: differences[name])


NAMES = {"parents.start": "--init-from"}
"""Options whose values are stored under another name."""
PRESET_ADVICE = (
    "its settings are those of --preset {preset}, or near them: give that, or choose another --out. Settings of "
    "sampling alone are changed by: unclip settings {pipeline}"
)


ADVICE = {
    "--init-from": "give --init-from as that run was given it, or choose another --out",
    "log_sigma": "give --log-sigma as that run has it, or choose another --out",
    "whitening": "give --whitening as that run has it, or choose another --out",
    "model.rivals": "it was trained by an earlier version, which knew no classes. Draw from it as it is, or train on "
    "from its weights in another --out, with --init-from {pipeline}",
    "train.lr": "to change it from the last saved state on, leave --train.lr as it was and give --resume-with {value}; "
    "or choose another --out",
    "train.steps": "its learning rate was planned for that many. To train on from its weights, choose another --out, "
    "with --init-from {pipeline}; --train.steps then counts the steps to come, and --train.warmup the first of them",
}
"""Advice about a run with another value, where there is something better than a new folder."""


def flatten_settings(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training": {"lr": 1}} -> {"training.lr": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
