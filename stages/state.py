"""Where a run goes on from: one of its last two states, or the weights of another pipeline.

A state is one file, or a folder in which each rank has its part; see sharded_state.py.
"""

import contextlib
import json
import math
import os
import re
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages import runtime
from stages.sharding import alike, fill, made_whole
from unclip.errors import UserError, reason
from unclip.fields import check
from unclip.store.files import partial_name, write_atomically
from unclip.store.parts import load_part, load_weights
from unclip.store.tensors import FAULTS, dump_sealed_tensors, load_sealed_tensors, read_metadata

SHARDED = re.compile(r"state-(\d+)")
"""The name of a folder of parts, which holds its step."""


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


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors of the optimisers that a run goes on from."""
    tensors = {}
    for optimizer in optimizers:
        name = type(optimizer).__name__
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{k}": v for k, v in moments.items()}
    return tensors


class WholeStates:
    """Writes the states of a run whose ranks all hold the same, each as one file.

    Args:
        folder: where the states are.
    """

    def __init__(self, folder: Path):
        self.path = folder / "state.safetensors"

    def tensors(
        self, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
    ) -> dict[str, Tensor]:
        """All tensors that the run goes on from."""
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
        return tensors | optimizer_tensors(optimizers)

    def save(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write a state."""
        if runtime.is_main():
            save_state(self.path, tensors, progress)
            forget_older(self.path.parent)

    def check(self) -> None:
        """Nothing can have failed since."""

    def finish(self) -> None:
        """Nothing is left to do."""


def open_states(folder: Path, sharded: bool) -> Any:
    """Return the writer of the states of a run into a folder."""
    if sharded:
        from stages.sharded_state import ShardedStates

        return ShardedStates(folder)
    return WholeStates(folder)


def save_state(path: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Write all that a run needs to go on, in one sealed file. The state before it is kept beside it."""
    content = dump_sealed_tensors(tensors, {"progress": json.dumps(progress_values(progress))})
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


def progress_values(progress: Progress) -> dict[str, Any]:
    """A run's progress as JSON holds it, with the threads and ranks of this process."""
    progress.threads = torch.get_num_threads()
    progress.ranks = runtime.world_size()
    return json.loads(json.dumps(vars(progress), default=float))


def sharded_path(folder: Path, step: int) -> Path:
    """Where the parts of the state of a step are."""
    return folder / f"state-{step:09d}"


def saved_states(folder: Path) -> list[Path]:
    """All states in a folder, those of later steps first."""
    latest = folder / "state.safetensors"
    steps = {latest: _step_of(latest)}
    steps[previous_state(latest)] = min(_step_of(previous_state(latest)), steps[latest])
    for path in folder.glob("state-*"):
        if (name := SHARDED.fullmatch(path.name)) and path.is_dir() and not path.is_symlink():
            steps[path] = int(name[1])
    return [path for path in sorted(steps, key=lambda path: steps[path], reverse=True) if path.exists()]


def _step_of(path: Path) -> float:
    """The step of a state in one file; infinity if that cannot be read, so that whoever opens the state notices."""
    try:
        return parse_progress(json.loads(read_metadata(path)["progress"]), path).step
    except (*FAULTS, OSError):
        return math.inf


def forget_older(folder: Path) -> None:
    """Delete all states but the last two."""
    for path in saved_states(folder)[2:]:
        if path.is_dir():
            shutil.rmtree(path.rename(partial_name(path)))  # under a name by which half of it is no state
        else:
            path.unlink()


def open_state(path: Path) -> tuple[dict[str, Tensor] | Path, Progress]:
    """The tensors of the last state, or the folder of its parts, and its progress. All ranks must call it.

    A damaged one gives way to the one before it, with a message. Raises UserError if all are damaged.

    Args:
        path: where a state is if it is one file; folders of parts are beside it.
    """
    damage = ""
    damaged = []
    for candidate in runtime.gather_values(saved_states(path.parent))[0]:
        with contextlib.suppress(FileNotFoundError):
            try:
                state, progress = _open_one_state(candidate)
            except FAULTS as error:
                damage = damage or reason(error)
                damaged.append(candidate)
                continue
            if damage:
                runtime.print0(f"{damage}: going on from the one before, of step {progress.step}")
            if runtime.is_main():
                for other in damaged:
                    _set_aside(other)
            return state, progress
    part = path.parents[1]
    advice = f"delete the folder {part} to train it anew"
    if (part / "config.json").exists():
        best = f"its best weights are in {part}: train on from them in another --out, with --init-from {part.parent}"
        advice = f"{best}; or {advice}"
    raise UserError(f"{damage}, and so is the one before; {advice}")


def _open_one_state(path: Path) -> tuple[dict[str, Tensor] | Path, Progress]:
    """A state as `open_state` returns it. Raises an error of `FAULTS` if it is damaged."""
    if path.is_dir():
        from stages.sharded_state import open_parts  # a second, which other trainings need not wait

        return path, open_parts(path)
    tensors, metadata = load_sealed_tensors(path)
    return tensors, parse_progress(json.loads(metadata["progress"]), path)


def _set_aside(state: Path) -> None:
    """Rename a damaged state, so that it does not count as one of the last two."""
    place = state.with_name(f"state-damaged{state.suffix}")
    if place.is_dir():
        shutil.rmtree(place)
    state.replace(place)


def parse_progress(values: dict[str, Any], path: Path) -> Progress:
    """The progress that a state holds. Raises an error of `FAULTS`, or UserError which names the path."""
    progress = Progress(**{name: values[name] for name in vars(Progress()) if name in values})
    check(progress, f"{path}: ")
    return progress


def has_state(path: Path) -> bool:
    """Whether there are states, in one file at `path` or in folders beside it."""
    return bool(saved_states(path.parent))


def load_state(path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """Fill the models and the optimisers from a saved state, if there is one. Returns its progress.

    All ranks must call it. Raises UserError if there are states but none is whole, or if it is that of another model.
    """
    if not any(runtime.gather_values(has_state(path))):
        return Progress()
    state, progress = open_state(path)
    try:
        if isinstance(state, Path):
            from stages.sharded_state import load_parts

            load_parts(state, model, average, optimizers)
        else:
            fill_from_state(path, state, model, average, optimizers)
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
    plain = made_whole(average)
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
