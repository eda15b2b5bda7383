"""The one training loop. It knows no model: a `Stage` gives it the loss, the validation figures, and a picture.

A step is a pure function of the weights, the optimiser's state, the seed and the step's number: batches and noise are
drawn anew from (seed, step). A run that was interrupted therefore goes on exactly as if it had not been.
"""

import copy
import json
import math
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from data.dataset import shuffled_rows
from stages import runtime
from stages.optim import cosine_warmup, make_optimizers, update_ema
from unclip.checkpoint import (
    Manifest,
    dump_tensors,
    load_tensors,
    load_weights,
    read_manifest,
    save_stage,
    write_index,
)
from unclip.devices import Device
from unclip.errors import UserError
from unclip.files import read_json, write_atomically, write_json
from unclip.images import save_png


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 32
    """Examples a step, over all ranks."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_lr: float = 0.0
    """Peak learning rate of Muon, which then takes the matrices and convolutions over from AdamW; 0 for AdamW alone."""
    warmup: int = 50
    """Steps of linear warm-up; a half cosine down to zero follows."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on matrices and convolutions only."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    clip_grad: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is saved."""
    evaluate_every: int = 500
    """Steps between validations."""
    save_every: int = 100
    """Steps between saved states, from which an interrupted run goes on."""
    preview_every: int = 500
    """Steps between preview grids."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Seed of initialisation, batches and noise."""
    device: Device = "auto"
    """Where to train: auto takes a GPU if there is one."""
    precision: runtime.Precision = "auto"
    """auto is bfloat16 autocast on CUDA, float32 elsewhere."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "evaluate_every", "save_every", "preview_every", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--train.{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        rules = {
            "warmup": ("at least 0", self.warmup >= 0),
            "weight-decay": ("at least 0", self.weight_decay >= 0),
            "clip-grad": ("above 0", self.clip_grad > 0),
            "betas": ("in 0 .. 1", all(0 <= beta < 1 for beta in self.betas)),
            "lr": ("above 0", self.lr > 0),
            "muon-lr": ("at least 0", self.muon_lr >= 0),
            "ema": ("at least 0 and below 1", 0 <= self.ema < 1),
            "seed": ("at least 0 and below 2**31", 0 <= self.seed < 2**31),
        }
        for name, (rule, kept) in rules.items():
            if not kept:
                raise UserError(f"--train.{name} must be {rule}, not {getattr(self, name.replace('-', '_'))}")


class Stage(Protocol):
    """What a stage gives to the loop."""

    name: str
    model: nn.Module
    size: int
    """Training examples."""
    best_is: tuple[str, str]
    """The validation figure that picks the best weights, and "highest" or "lowest"."""

    def loss(self, model: nn.Module, rows: Tensor) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The loss on these training examples, and what to log beside it."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Validation figures."""

    def preview(self, model: nn.Module) -> Image.Image:
        """A picture for fixed captions and seeds."""


@dataclass
class Progress:
    """What a run carries from step to step beside its tensors."""

    step: int = 0
    best: float | None = None
    """The best validation figure so far."""
    seconds: float = 0.0
    """Time spent on steps."""


def train(
    stage: Stage,
    config: TrainConfig,
    device: torch.device,
    pipeline: Path,
    manifest: Manifest,
    beside: dict[str, str] | None = None,
) -> Manifest:
    """Train a stage into `pipeline`/NAME, going on from where an earlier call was interrupted.

    Writes model.safetensors (the moving average that did best in validation) and config.json; in train/ the last state,
    metrics.jsonl, and preview grids. `manifest` holds the stage's parents and data; `beside` are files to put into the
    pipeline's folder. Returns the manifest of the saved weights.

    Raises UserError if the folder holds a run with other settings, or if the loss is no longer finite.
    """
    if config.batch_size % runtime.world_size():
        raise UserError(f"--train.batch-size {config.batch_size} is not a multiple of {runtime.world_size()} ranks")
    folder = pipeline / stage.name
    manifest.model = asdict(stage.model.config)
    with runtime.main_first():
        complete = check_same_run(folder, manifest)
    if complete:
        runtime.print0(f"{stage.name}: {folder} is trained already; delete it to train it anew")
        if runtime.is_main():
            write_index(pipeline)
        return read_manifest(folder)
    if runtime.is_main():
        for name, content in (beside or {}).items():
            write_atomically(pipeline / name, content)
    model = stage.model.to(device)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizers = make_optimizers(model, config.lr, config.weight_decay, config.betas, config.muon_lr)
    progress = load_state(folder / "train" / "state.safetensors", model, average, optimizers)
    log = Log(folder / "train" / "metrics.jsonl", stage, config, progress)
    model.train()
    while progress.step < config.steps:
        began = time.perf_counter()
        figures = take_step(stage, config, model, optimizers, progress.step, device)
        update_ema(average, model, progress.step, config.ema)
        progress.step += 1
        progress.seconds += time.perf_counter() - began
        log.step(figures)

        if runtime.is_main():
            last = progress.step == config.steps
            if last or progress.step % config.preview_every == 0:
                save_png(folder / "train" / f"preview-{progress.step:06d}.png", preview(stage, average))
            evaluated = last or progress.step % config.evaluate_every == 0
            if evaluated:
                log.validation(validate(stage, average, folder, manifest, progress, last))
            if evaluated or progress.step % config.save_every == 0:
                save_state(folder / "train" / "state.safetensors", model, average, optimizers, progress)
    log.close()
    if runtime.is_main():
        write_index(pipeline)
    runtime.barrier()
    return read_manifest(folder)


def take_step(
    stage: Stage,
    config: TrainConfig,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    device: torch.device,
) -> dict[str, float | Tensor]:
    """One optimiser step; what to log of it."""
    torch.manual_seed((config.seed * 1_000_003 + step + 1) * 1_009 + runtime.rank())
    rows = runtime.own_share(shuffled_rows(step, config.batch_size, stage.size, config.seed))
    with runtime.autocast(device, config.precision):
        loss, extra = stage.loss(model, rows)
    model.zero_grad()
    loss.backward()
    runtime.average_gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    factor = cosine_warmup(step, config.steps, config.warmup)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
    return {"loss": loss.detach(), **extra, "grad_norm": norm, "lr": config.lr * factor}


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


NO_SETTINGS = ("out", "preset", "model", "init_from", "clip", "clip_revision")
"""Of a run: where things lie, or what its manifest names elsewhere."""


def settings(run: Any) -> dict[str, Any]:
    """What of a trainer's config makes two runs the same: not the folder, where the data lies, or the device."""
    kept = {key: value for key, value in asdict(run).items() if key not in NO_SETTINGS}
    del kept["data"]["source"], kept["data"]["root"], kept["train"]["device"]
    return kept


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


@torch.inference_mode()
def preview(stage: Stage, average: nn.Module) -> Image.Image:
    return stage.preview(average)


@torch.inference_mode()
def validate(
    stage: Stage, average: nn.Module, folder: Path, manifest: Manifest, progress: Progress, last: bool
) -> dict[str, float]:
    """Take the validation figures, and save the averaged weights if they are the best so far."""
    figures = stage.evaluate(average)
    key, direction = stage.best_is
    if not math.isfinite(figures[key]):
        raise UserError(f"{stage.name}: validation {key} is {figures[key]} at step {progress.step}; lower --train.lr")
    sign = 1 if direction == "highest" else -1
    if progress.best is None or sign * figures[key] > sign * progress.best:
        progress.best = figures[key]
        save_stage(folder, average, replace(manifest, step=progress.step, figures=figures, complete=last))
    elif last:
        write_json(folder / "config.json", asdict(replace(read_manifest(folder), complete=True)))
    return figures


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


class Log:
    """Progress for people (a bar on a terminal, plain lines elsewhere) and for programs (metrics.jsonl)."""

    def __init__(self, path: Path, stage: Stage, config: TrainConfig, progress: Progress):
        self.path, self.stage, self.config, self.progress = path, stage, config, progress
        self.recent: list[dict[str, float | Tensor]] = []
        self.mark = (progress.step, progress.seconds)
        self.bar = None
        if runtime.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_lines_after(progress.step)
            millions = sum(p.numel() for p in stage.model.parameters()) / 1e6
            going_on = f", going on from step {progress.step}" if progress.step else ""
            runtime.print0(
                f"{stage.name}: {millions:.2f}M parameters, {stage.size} examples, {config.steps} steps of "
                f"{config.batch_size} on {next(stage.model.parameters()).device}{going_on}"
            )
            if sys.stderr.isatty():
                self.bar = tqdm(total=config.steps, initial=progress.step, desc=stage.name, unit="step")

    def _drop_lines_after(self, step: int) -> None:
        """Lines that an interrupted run wrote after its last saved state will be written again."""
        if self.path.exists():
            whole = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            write_atomically(self.path, "".join(line for line in whole if json.loads(line)["step"] <= step))

    def step(self, figures: dict[str, float | Tensor]) -> None:
        """Take note of a step. At intervals, and wherever the state is saved, log the means since the last time.

        Raises UserError if the loss is no longer finite.
        """
        self.recent.append(figures)
        if self.bar is not None:
            self.bar.update()
        step = self.progress.step
        due = (self.config.log_every, self.config.evaluate_every, self.config.save_every)
        if all(step % every for every in due) and step != self.config.steps:
            return
        means = {k: sum(float(figures[k]) for figures in self.recent) / len(self.recent) for k in figures}
        if not math.isfinite(means["loss"]):
            raise UserError(f"{self.stage.name}: the loss is {means['loss']} near step {step}; try a lower --train.lr")
        images = (step - self.mark[0]) * self.config.batch_size
        rate = images / (self.progress.seconds - self.mark[1])
        left = (self.config.steps - step) * self.config.batch_size / rate
        self.recent, self.mark = [], (step, self.progress.seconds)
        self._write({**means, "lr": figures["lr"], "images_per_second": rate})
        told = ", ".join(f"{k} {v:.4g}" for k, v in means.items() if k not in ("grad_norm", "lr"))
        self._say(f"{told}, {rate:.0f} images/s, {int(left) // 60}:{int(left) % 60:02d} left")

    def validation(self, figures: dict[str, float]) -> None:
        self._write({f"validation/{key}": value for key, value in figures.items()})
        self._say("validation: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()), keep=True)

    def _say(self, message: str, keep: bool = False) -> None:
        if self.bar is not None and not keep:
            self.bar.set_postfix_str(message)
        elif runtime.is_main():
            tqdm.write(f"{self.stage.name} {self.progress.step}/{self.config.steps}: {message}", file=sys.stderr)

    def _write(self, figures: dict[str, float]) -> None:
        if runtime.is_main():
            line = {"step": self.progress.step, "seconds": round(self.progress.seconds, 2), **figures}
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
