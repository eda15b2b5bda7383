"""The one training loop. It knows no model: a `Stage` gives it an objective, batches, figures, and a picture.

A step is a pure function of the weights, the optimiser's state, the seed and the step's number: batches and noise are
drawn anew from (seed, step). A run that was interrupted therefore goes on exactly as if it had not been.
"""

import copy
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from data.dataset import batch_generator, shuffled_rows
from stages import runtime
from stages.identity import check_same_run
from stages.log import Log
from stages.optim import cosine_warmup, make_optimizers, update_ema
from stages.state import Progress, load_state, save_state
from unclip.checkpoint import Manifest, read_manifest, save_stage, write_index
from unclip.devices import Device
from unclip.errors import UserError
from unclip.fields import free
from unclip.files import write_atomically, write_json
from unclip.images import save_png
from unclip.rows import Rows


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 32
    """Examples per step, over all ranks."""
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
    evaluate_every: int = free(500)
    """Steps between validations."""
    save_every: int = free(100)
    """Steps between saved states, from which an interrupted run goes on."""
    preview_every: int = free(500)
    """Steps between preview grids."""
    log_every: int = free(50)
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Seed of initialisation, batches and noise."""
    device: Device = free("auto")
    """Where to train: auto takes a GPU if there is one."""
    precision: runtime.Precision = "auto"
    """auto is bfloat16 autocast on CUDA and on CPUs with AMX, float32 elsewhere."""

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
    """What is trained, averaged and saved."""
    objective: nn.Module
    """Holds the model; its forward(batch) is the loss. Engines that hook into modules wrap it whole."""
    size: int
    """Training examples."""
    best_is: tuple[str, str]
    """The validation figure that picks the best weights, and "highest" or "lowest"."""

    def batch(self, rows: Tensor, generator: torch.Generator) -> Rows:
        """These training examples, with all that is random in a step: a pure function of its arguments."""

    def figures(self, batch: Rows) -> dict[str, float | Tensor]:
        """What to log of a step beside the loss."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Validation figures."""

    def preview(self, model: nn.Module) -> Image.Image:
        """A picture for fixed captions and seeds."""


def train(
    stage: Stage,
    config: TrainConfig,
    device: torch.device,
    pipeline: Path,
    manifest: Manifest,
    files: dict[str, str] | None = None,
) -> Manifest:
    """Train a stage into `pipeline`/NAME, going on from where an earlier call was interrupted.

    Writes model.safetensors (the moving average that did best in validation) and config.json; in train/ the last state,
    metrics.jsonl, and preview grids. `manifest` holds the stage's parents and data; `files` are put into the pipeline's
    folder. Returns the manifest of the saved weights.

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
    else:
        if runtime.is_main():
            for name, content in (files or {}).items():
                write_atomically(pipeline / name, content)
        run_steps(stage, config, device, folder, manifest)
    if runtime.is_main():
        finish(folder, manifest)
    runtime.barrier()
    return read_manifest(folder)


def run_steps(stage: Stage, config: TrainConfig, device: torch.device, folder: Path, manifest: Manifest) -> None:
    """Take the steps that are left, saving, validating and drawing on the way."""
    state = folder / "train" / "state.safetensors"
    model = stage.model.to(device, memory_format=torch.channels_last)  # convolutions are faster so
    average = copy.deepcopy(model).requires_grad_(False).eval()
    objective = runtime.distributed(stage.objective.to(device))
    optimizers = make_optimizers(model, config.lr, config.weight_decay, config.betas, config.muon_lr)
    progress = load_state(state, model, average, optimizers)
    log = Log(folder / "train" / "metrics.jsonl", stage, config, progress)
    model.train()
    while progress.step < config.steps:
        began = time.perf_counter()
        figures = take_step(stage, config, objective, optimizers, progress.step, device)
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
                save_state(state, model, average, optimizers, progress)
    log.close()


def take_step(
    stage: Stage,
    config: TrainConfig,
    objective: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    device: torch.device,
) -> dict[str, float | Tensor]:
    """One optimiser step; what to log of it."""
    rows = shuffled_rows(step, config.batch_size, stage.size, config.seed)
    batch = stage.batch(rows, batch_generator(config.seed, step))
    batch = batch.share(runtime.rank(), runtime.world_size()).to(device)
    with runtime.autocast(device, config.precision):
        loss = objective(batch)
    objective.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(objective.parameters(), config.clip_grad)
    factor = cosine_warmup(step, config.steps, config.warmup)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
    return {"loss": loss.detach(), **stage.figures(batch), "grad_norm": norm, "lr": config.lr * factor}


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


def finish(folder: Path, manifest: Manifest) -> None:
    """Note how to sample from a stage that is trained, which a later command may change, and renew the index."""
    saved = read_manifest(folder)
    if saved.sampling != manifest.sampling:
        write_json(folder / "config.json", asdict(replace(saved, sampling=manifest.sampling)))
    write_index(folder.parent)
