"""What a run goes on from: one of its last two states, or the weights of another pipeline."""

import contextlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor, nn

from stages import runtime
from stages.sharding import alike, fill, made_whole, whole
from unclip.errors import UserError, reason
from unclip.store.checkpoint import dump_tensors, load_part, load_weights
from unclip.store.files import partial_name, write_atomically
from unclip.store.hub import find_pipeline

BLANK = "0" * 32
"""Stands for the checksum while it is computed."""
FAULTS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, SafetensorError)
"""What reading a damaged file raises."""


@dataclass
class Progress:
    """What a run carries from step to step beside its tensors."""

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


def state_tensors(model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors that a run goes on from, those of the optimisers made whole. All ranks must call it."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for optimizer in optimizers:
        name = type(optimizer).__name__
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{k}": whole(v) for k, v in moments.items()}
    return tensors


def save_state(path: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
    """All that a run needs to go on, in one file with its own checksum; the one before it is kept beside it."""
    progress.threads, progress.ranks = torch.get_num_threads(), runtime.world_size()
    metadata = {"progress": json.dumps(vars(progress), default=float), "checksum": BLANK}
    content = sealed(dump_tensors(tensors, metadata))
    if path.exists():
        keep(path)
    write_atomically(path, content)


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The first of the tensors that holds NaN or infinity."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not floating:
        return None
    largest = torch._foreach_norm(list(floating.values()), torch.inf)
    finite = torch.stack([norm.float().cpu() for norm in largest]).isfinite().tolist()
    return next((name for name, good in zip(floating, finite, strict=True) if not good), None)


def keep(path: Path) -> None:
    """Give a state a second name, that of the state before, such that at every moment there is a state."""
    second = partial_name(path)
    try:
        os.link(path, second)
        os.replace(second, earlier(path))
        second.unlink(missing_ok=True)  # a rename between two names of one file does nothing
    except OSError:  # a file system without links
        os.replace(path, earlier(path))


def earlier(path: Path) -> Path:
    return path.with_name("state-before.safetensors")


def sealed(content: bytes) -> list[bytes | memoryview]:
    """A safetensors file, in parts, with its checksum in the header's metadata; it is taken while a blank is there."""
    length = 8 + int.from_bytes(content[:8], "little")
    header, body = content[:length], memoryview(content)[length:]
    digest = xxhash.xxh3_128(header)
    digest.update(body)
    return [header.replace(BLANK.encode(), digest.hexdigest().encode(), 1), body]


def unsealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file that was sealed. Raises UserError if any of its bytes has changed."""
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    try:
        metadata = json.loads(content[8:length])["__metadata__"]
        written = metadata["checksum"]
        header = content[:length].replace(written.encode(), BLANK.encode(), 1)
        digest = xxhash.xxh3_128(header)
        digest.update(memoryview(content)[length:])
        if digest.hexdigest() != written:
            raise UserError("its checksum is another")
        return safetensors.torch.load(content), metadata
    except FAULTS as error:
        raise UserError(f"{path} is damaged ({reason(error)})") from error


def open_state(path: Path) -> tuple[dict[str, Tensor], Progress]:
    """The last state, or the one before if it is damaged, which is said. Raises UserError if both are."""
    why = ""
    for one in (path, earlier(path)):
        with contextlib.suppress(FileNotFoundError):
            try:
                tensors, metadata = unsealed(one)
            except UserError as error:
                why = why or str(error)
                continue
            values = json.loads(metadata["progress"])
            progress = Progress(**{name: values[name] for name in vars(Progress()) if name in values})
            if why:
                runtime.print0(f"{why}: going on from the one before, of step {progress.step}")
                if runtime.is_main():  # it is not to take the good one's place at the next save
                    path.replace(path.with_name("state-damaged.safetensors"))
            return tensors, progress
    raise UserError(f"{why}, and so is the one before; delete the folder {path.parents[1]} to train it anew")


def has_state(path: Path) -> bool:
    return path.exists() or earlier(path).exists()


def load_state(path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """Go on from a saved state, or from the beginning if there is none. Raises UserError if none is whole."""
    if not has_state(path):
        return Progress()
    tensors, progress = open_state(path)
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
            if value.ndim and value.shape == weight.shape:  # in the order in memory that the optimiser gave it
                value = alike(value, weight)
            state[int(index)][name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def start_from(model: nn.Module, pipeline: Path | None, stage: str) -> dict[str, str]:
    """Fill a new model with the weights of another pipeline's stage, if one is given: fine-tuning.

    What a model names as `of_data` it keeps. Returns the parent to name in the manifest, {"start": SHA-256}.
    Raises UserError if shapes differ.
    """
    if pipeline is None:
        return {}
    pipeline = find_pipeline(pipeline)
    parent, manifest = load_part(pipeline / stage)
    prefix = getattr(model, "of_data", ())  # no name starts with an empty tuple
    theirs = {name: tensor for name, tensor in parent.state_dict().items() if not name.startswith(prefix)}
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    load_weights(model, theirs | own, pipeline / stage / "model.safetensors")
    return {"start": manifest.sha256}
