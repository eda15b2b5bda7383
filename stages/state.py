"""Where a run goes on from: one of its last two states, or the weights of another pipeline."""

import contextlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages import runtime
from stages.sharding import alike, fill, made_whole, whole
from unclip.errors import UserError, reason
from unclip.fields import check
from unclip.store.files import partial_name, write_atomically
from unclip.store.parts import load_part, load_weights
from unclip.store.tensors import FAULTS, dump_sealed_tensors, load_sealed_tensors


@dataclass
class Progress:
    """Everything that a run carries from step to step beside its tensors."""

    step: int = 0
    best: float | None = None
    """The best validation figure so far."""
    seconds: float = 0.0
    """Time spent on steps."""
    recent: list[dict[str, float | Tensor]] = field(default_factory=list)
    """Figures of the steps since the last line of metrics.jsonl."""
    rates: list[list[float]] = field(default_factory=list)
    """[step, learning rate] of each change by --resume-with: the rate from that step on."""
    run: str = ""
    """The checksum of the run's settings."""
    threads: int = 0
    ranks: int = 1
    stream: list[dict[str, Any]] = field(default_factory=list)
    """Where each rank's stream of examples is, if they are streamed."""


def state_tensors(model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors that a run goes on from, with those of the optimisers made whole. All ranks must call it."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for optimizer in optimizers:
        name = type(optimizer).__name__
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{k}": whole(v) for k, v in moments.items()}
    return tensors


def save_state(path: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Write all that a run needs to go on, in one sealed file. The state before it is kept beside it."""
    progress.threads = torch.get_num_threads()
    progress.ranks = runtime.world_size()
    content = dump_sealed_tensors(tensors, {"progress": json.dumps(vars(progress), default=float)})
    if path.exists():
        keep_previous_state(path)
    write_atomically(path, content)


def keep_previous_state(path: Path) -> None:
    """Give a state a second name, that of the previous state, so that there is a state at every moment."""
    second = partial_name(path)
    try:
        os.link(path, second)
        os.replace(second, previous_state(path))
        second.unlink(missing_ok=True)  # a rename between two names of one file does nothing
    except OSError:  # a file system without links
        os.replace(path, previous_state(path))


def previous_state(path: Path) -> Path:
    return path.with_name("state-before.safetensors")


def open_state(path: Path) -> tuple[dict[str, Tensor], Progress]:
    """The last state, or the previous one, with a message, if it is damaged. Raises UserError if both are."""
    damage = ""
    for candidate in (path, previous_state(path)):
        with contextlib.suppress(FileNotFoundError):
            try:
                tensors, metadata = load_sealed_tensors(candidate)
                progress = parse_progress(metadata["progress"], candidate)
            except FAULTS as error:
                damage = damage or reason(error)
                continue
            if damage:
                runtime.print0(f"{damage}: going on from the one before, of step {progress.step}")
                if runtime.is_main():  # so that the next save does not keep it in place of the good one
                    path.replace(path.with_name("state-damaged.safetensors"))
            return tensors, progress
    part = path.parents[1]
    advice = f"delete the folder {part} to train it anew"
    if (part / "config.json").exists():
        best = f"its best weights are in {part}: train on from them in another --out, with --init-from {part.parent}"
        advice = f"{best}; or {advice}"
    raise UserError(f"{damage}, and so is the one before; {advice}")


def parse_progress(text: str, path: Path) -> Progress:
    """The progress in a state's metadata. Raises an error of `FAULTS`, or UserError which names the path."""
    values = json.loads(text)
    progress = Progress(**{name: values[name] for name in vars(Progress()) if name in values})
    check(progress, f"{path}: ")
    return progress


def has_state(path: Path) -> bool:
    return path.exists() or previous_state(path).exists()


def load_state(path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """Fill the models and the optimisers from a saved state, if there is one. Returns its progress.

    Raises UserError if there are states but none is whole, or if it is that of another model.
    """
    if not has_state(path):
        return Progress()
    tensors, progress = open_state(path)
    try:
        fill_from_state(path, tensors, model, average, optimizers)
    except (*FAULTS, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        advice = f"delete the folder {path.parents[1]} to train it anew"
        raise UserError(f"{path} does not fit this training ({reason(error)}); {advice}") from error
    return progress


def fill_from_state(
    path: Path,
    tensors: dict[str, Tensor],
    model: nn.Module,
    average: nn.Module,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    """Fill the models and the optimisers from the tensors of a state."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    plain = made_whole(average, average)
    for module, name in ((model, "model"), (average, "average")):
        load_weights(plain, parts[name], path)
        fill(module, plain)
    for optimizer in optimizers:
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for key, value in parts[type(optimizer).__name__].items():
            index, name = key.split(".", 1)
            weight = weights[int(index)]
            if value.ndim and value.shape == weight.shape:  # in the memory format that the optimiser gave it
                value = alike(value, weight)
            state[int(index)][name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def start_from(model: nn.Module, pipeline: Path, part: str) -> dict[str, str]:
    """Fill a new model with the weights of another pipeline's part, for fine-tuning.

    Weights that the model names as `data_buffers` keep their values. Returns the parent to name in the manifest,
    {"start": SHA-256}. Raises UserError if shapes differ.
    """
    parent, manifest = load_part(pipeline / part)
    prefix = getattr(model, "data_buffers", ())  # no name starts with an empty tuple
    inherited = {name: tensor for name, tensor in parent.state_dict().items() if not name.startswith(prefix)}
    retained = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    load_weights(model, inherited | retained, pipeline / part / "model.safetensors")
    return {"start": manifest.sha256}
