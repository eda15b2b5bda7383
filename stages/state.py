"""What a run goes on from: its last state, or the weights of another pipeline."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unclip.checkpoint import dump_tensors, load_tensors, load_weights, read_manifest
from unclip.files import write_atomically


@dataclass
class Progress:
    """What a run carries from step to step beside its tensors."""

    step: int = 0
    best: float | None = None
    """The best validation figure so far."""
    seconds: float = 0.0
    """Time spent on steps."""


def save_state(
    path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    """All that a run needs to go on, in one file that is replaced as a whole."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for optimizer in optimizers:
        name = type(optimizer).__name__
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{k}": v for k, v in moments.items()}
    write_atomically(path, dump_tensors(tensors, {"progress": json.dumps(asdict(progress))}))


def load_state(path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """Go on from a saved state, or from the beginning if there is none. Raises UserError if it is damaged."""
    if not path.exists():
        return Progress()
    tensors, metadata = load_tensors(path)
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    load_weights(model, parts["model"], path)
    load_weights(average, parts["average"], path)
    for optimizer in optimizers:
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, value in parts[type(optimizer).__name__].items():
            index, name = key.split(".", 1)
            state[int(index)][name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**json.loads(metadata["progress"]))


def start_from(model: nn.Module, pipeline: Path | None, stage: str) -> dict[str, str]:
    """Fill a new model with the weights of another pipeline's stage, if one is given: fine-tuning.

    Returns the parent to name in the manifest, {"start": SHA-256}. Raises UserError if shapes differ.
    """
    if pipeline is None:
        return {}
    path = pipeline / stage / "model.safetensors"
    parent = read_manifest(pipeline / stage)
    load_weights(model, load_tensors(path)[0], path)
    return {"start": parent.sha256}
