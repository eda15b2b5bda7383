"""What a pipeline's model_index.json says. Kept apart from the weights: `sample.py --help` need not import torch."""

from pathlib import Path
from typing import Any

from unclip.errors import UserError, reason
from unclip.fields import from_dict
from unclip.registry import PARTS
from unclip.settings import Sampling
from unclip.store.files import read_record

RENEW = "delete it, and give the last training command again, which writes it anew"

COMMITTED = ("fashion-mnist", "emoji")
"""Names of the pipelines that come with the project: as old as its checkout, so they are never the newest."""


RENAMED = {
    ("prior", "draws"): "num_candidates",
    ("prior", "accept"): "threshold",
    ("decoder", "tries"): "num_candidates",
}
"""Settings of format 3 by the names that they have now."""


def read_index(pipeline: Path) -> dict[str, Any]:
    """What model_index.json says, nothing if it is not there. Raises UserError if it has changed."""
    path = pipeline / "model_index.json"
    return read_record(path, RENEW) if path.is_file() else {}


def read_sampling(pipeline: Path) -> Sampling:
    """The pipeline's own settings of sampling; what model_index.json does not name is the library's.

    Raises UserError for settings that are unknown or out of range.
    """
    path = pipeline / "model_index.json"
    own = read_index(pipeline).get("sampling", {})
    if not isinstance(own, dict) or not all(isinstance(part, dict) for part in own.values()):
        raise UserError(f'{path} holds no settings of sampling under "sampling"; restore it, or delete the entry')
    own = {part: {RENAMED.get((part, k), k): v for k, v in values.items()} for part, values in own.items()}
    try:
        return from_dict(Sampling, own, str(path))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds settings of sampling that cannot be used ({reason(error)})") from error


def newest_pipeline(folder: Path) -> Path:
    """The newest pipeline in a folder of them whose stages are all complete, else the committed one of Fashion-MNIST.

    Raises UserError if there is neither.
    """
    committed = folder / COMMITTED[0]
    times = {path: finished(path) for path in folder.glob("*/") if path.name not in COMMITTED}
    newest = max(times, key=times.get, default=committed)
    newest = newest if times.get(newest) else committed
    if not newest.is_dir():
        raise UserError(
            f"no trained pipeline under {folder.name}/; train one with: make demo, or name one: --checkpoint DIR"
        )
    return newest


def finished(pipeline: Path) -> float:
    """When the last stage of a pipeline was finished, or 0."""
    configs = {name: pipeline / name / "config.json" for name, stage in PARTS.items() if not stage.optional}
    try:
        complete = read_index(pipeline).get("stages", {}).keys() >= configs.keys()
        return max(path.stat().st_mtime for path in configs.values()) if complete else 0.0
    except (OSError, UserError, AttributeError):
        return 0.0
