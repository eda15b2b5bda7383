"""Settings of sampling that are changed in a trained pipeline, without its data or a training."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.settings import PartSettings, Sampling
from unclip.store.formats import FORMAT
from unclip.store.index import read_index
from unclip.store.manifest import Manifest, read_manifest
from unclip.store.sealed_json import write_record


def write_sampling(pipeline: Path, sampling: Sampling) -> None:
    """Store settings of sampling in a pipeline of any format, for its trained parts; nothing else changes.

    They stay until a training writes the part anew, or stores settings of its own. `batch_size` is not stored.

    Raises UserError if the folder holds no pipeline, or for more steps than a part can take.
    """
    index = read_index(pipeline)
    if not index:
        raise UserError(f"{pipeline} holds no trained pipeline; name the folder of one")
    settings: dict[str, dict[str, Any]] = dict(index.get("sampling", {}))
    for part in index["parts"]:
        values = getattr(sampling, part, None)
        if isinstance(values, PartSettings):
            check_steps(values, read_manifest(pipeline / part))
            settings[part] = asdict(values)  # type: ignore[call-overload]
    write_record(pipeline / "model_index.json", index | {"format": FORMAT, "sampling": settings})


def check_steps(settings: Any, manifest: Manifest) -> None:
    """Raise UserError for more steps than the part has timesteps."""
    timesteps = manifest.model.get("diffusion", {}).get("timesteps")
    steps = getattr(settings, "steps", 1)
    if timesteps and steps > timesteps:
        name = f"{settings.prefix}steps"
        raise UserError(f"{name} must be from 1 to {timesteps}, the timesteps of the {manifest.part}, not {steps}")
