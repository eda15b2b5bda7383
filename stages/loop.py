"""The one training loop. It knows no model: a `Stage` gives it an objective, batches, figures, and a picture.

A step is a pure function of the weights, the optimiser's state, the seed and the step's number: batches and noise are
drawn anew from (seed, step), or the examples from a stream whose state is saved too. A run that was interrupted
therefore goes on exactly as if it had not been.
"""

import contextlib
import copy
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

import torch
import tyro
from PIL import Image
from torch import Tensor, nn

from stages import runtime, sharding
from stages.batches import StepDraw, batches
from stages.cuda_graph import Gradients, recorded
from stages.identity import check_same_run, record_run, run_checksum
from stages.log import Log
from stages.memory import compile_blocks, recompute
from stages.optim import cosine_warmup, make_optimizers, update_ema
from stages.state import Progress, load_state, open_states
from stages.streaming import StepStream
from unclip.cli import signals
from unclip.devices import Device
from unclip.errors import UserError, quantity
from unclip.fields import as_option, bounded, check
from unclip.store.checksums import json_sha256
from unclip.store.files import remove_leftovers
from unclip.store.index import check_free, write_index
from unclip.store.lock import only_writer
from unclip.store.manifest import Manifest, read_manifest
from unclip.store.parts import finish_saving, save_changed_manifest, save_part
from unclip.store.tensors import stream_tensors
from unclip.tensor_batch import TensorBatch

TRIAL_STEPS = 100
"""Fewer steps than these are a trial, which need not learn anything."""
LEAST_CHANGE = 1e-5
"""The learning rate, summed over the steps, is about as far as a weight can move. Below this none of them learns."""


@dataclass(frozen=True)
class TrainConfig:
    steps: int = bounded(1000, 1, 10**9)
    """Optimiser steps."""
    batch_size: int = bounded(32, 1, 65_536)
    """Examples per step, over all ranks."""
    recompute: bool = bounded(False, affects_weights=False)
    """Compute blocks a second time in the backward pass, for less memory; the results are the same to rounding."""
    compile: bool = bounded(False, affects_weights=False)
    """Compile the blocks (torch.compile): a minute or more at the start, and steps that may be faster; the results are
    the same to rounding."""
    cuda_graph: bool = bounded(True, affects_weights=False)
    """On one GPU record the forward and backward pass, so that Python does not launch each kernel of each step."""
    accumulate: int = bounded(1, 1, 65_536, affects_weights=False)
    """Parts in which each rank takes its examples of a step, for less memory; the results are the same to rounding."""
    shard: bool = bounded(False, affects_weights=False)
    """Share the weights and the optimiser's state out among the ranks (FSDP2), for models too large for one."""
    lr: float = bounded(1e-3, 1e-12, 100)
    """Peak learning rate of AdamW."""
    muon_lr: float = bounded(0.0, 0, 100)
    """Peak learning rate of Muon, which then takes the matrices and convolutions over from AdamW; 0 for AdamW alone."""
    warmup: int = bounded(50, 0, 10**9)
    """Steps of linear warm-up; a half cosine down to zero follows."""
    weight_decay: float = bounded(0.05, 0, 100)
    """Decoupled weight decay, on matrices and convolutions only."""
    betas: tuple[float, float] = bounded((0.9, 0.99), 0, 0.999999)
    """AdamW's decay rates."""
    clip_grad: float = bounded(1.0, 1e-4, 1e9)
    """Largest norm of the gradient."""
    ema: float = bounded(0.999, 0, 0.9999999)
    """Decay of the moving average of the weights, which is what is saved."""
    evaluate_every: int = bounded(500, 1, 10**9, affects_weights=False)
    """Steps between validations."""
    save_every: int = bounded(100, 1, 10**9, affects_weights=False)
    """Steps between saved states, from which an interrupted run goes on."""
    preview_every: int = bounded(500, 1, 10**9, affects_weights=False)
    """Steps between preview grids."""
    log_every: int = bounded(50, 1, 10**9, affects_weights=False)
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = bounded(False, affects_weights=False)
    """Also log the figures and the previews for TensorBoard, into the stage's train/tensorboard."""
    seed: int = bounded(0, 0, 2**31 - 1)
    """Seed of initialisation, batches and noise."""
    device: Device = bounded("auto", affects_weights=False)
    """Where to train: auto takes a GPU if there is one."""
    precision: runtime.Precision = "auto"
    """auto is bfloat16 autocast on CUDA and on CPUs with AMX or AVX512-BF16, float32 elsewhere."""
    resume_with: Annotated[float | None, tyro.conf.arg(prefix_name=False)] = bounded(
        None, 1e-12, 100, display_name="resume_with", affects_weights=False
    )
    """Go on from the saved state with this peak learning rate (Muon's changes in proportion), from that step on."""

    def __post_init__(self):
        check(self, "train.", as_option)
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise UserError("--train.tensorboard needs a package that is not installed: pip install '.[tensorboard]'")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        rate = max(self.lr, self.muon_lr)
        whole_steps = self.steps / 2 if self.warmup < self.steps else self.steps**2 / (2 * self.warmup)
        if self.steps >= TRIAL_STEPS and rate * whole_steps < LEAST_CHANGE:
            move = f"--train.warmup {self.warmup} no weight moves by more than {rate * whole_steps:.1g}"
            yield "lr", f"be higher, or the warm-up shorter: in {self.steps} steps with {move}"
        if rate * self.weight_decay >= 1:
            yield "weight_decay", f"be below {1 / rate:.3g}, as a step at the learning rate {rate} would erase weights"


class Stage(Protocol):
    """A training stage, as the loop sees it."""

    name: str
    model: nn.Module
    """The model that is trained, averaged and saved."""
    objective: nn.Module
    """Module that holds the model; its forward(batch) is the loss. The whole batch's loss is the mean over the parts
    that a batch splits into, and over the ranks. Engines that hook into modules, such as DDP, wrap this module."""
    size: int
    """Training examples."""
    best_is: tuple[str, str]
    """The validation figure that picks the best weights, and "highest" or "lowest"."""

    def batch(self, draw: StepDraw) -> TensorBatch:
        """This rank's training examples of a step, with all that is random in it: a pure function of `draw`."""

    def figures(self, batch: TensorBatch) -> dict[str, float | Tensor]:
        """Figures to log beside the loss; computed only at the steps that write a line."""

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
    stream: StepStream | None = None,
) -> Manifest:
    """Train a stage into `pipeline`/NAME, going on from where an earlier call was interrupted.

    Writes model.safetensors (the moving average that did best in validation) and config.json; in train/ the last state,
    metrics.jsonl, its curves, and preview grids. `manifest` holds the stage's parents and data; `files` are put into
    the pipeline's folder; a `stream` gives the examples of each step, in place of the stage's own. Returns the manifest
    of the saved weights.

    A signal ends the training after the step that it is at, saved; see unclip/cli/signals.py.

    Raises UserError if the folder holds a run with other settings, or is being written by another process, or if a
    number is no longer finite.
    """
    if config.batch_size % runtime.world_size():
        raise UserError(f"--train.batch-size {config.batch_size} is not a multiple of {runtime.world_size()} ranks")
    if config.accumulate > (most := config.batch_size // runtime.world_size()):
        raise UserError(f"--train.accumulate must be at most {most}, the examples of a rank, not {config.accumulate}")
    folder = pipeline / stage.name
    manifest.model = asdict(stage.model.config)
    with only_writer(folder / "train") if runtime.is_main() else contextlib.nullcontext(lambda: None) as check_lock:
        with runtime.main_first():
            if runtime.is_main():
                clean_up(folder)
                check_free(pipeline, stage.name, list(files or {}))
            complete = check_same_run(folder, manifest)
        if not all(runtime.gather_values((folder / "train").is_dir())):
            raise UserError(f"not every rank sees the folder {folder}; choose an --out that all machines share")
        if complete and config.resume_with is not None:
            raise UserError(f"{folder} is trained to its last step, so --resume-with changes nothing; {TRAIN_ON}")
        if runtime.is_main():
            write_index(pipeline, leave_out="" if complete else stage.name, files=files)
        if complete:
            runtime.print0(f"{stage.name}: {folder} is trained already; {TRAIN_ON}")
        else:
            manifest = run_steps(stage, config, device, folder, manifest, check_lock, stream)
        if runtime.is_main():
            finish(folder, manifest)
        runtime.barrier()
    return read_manifest(folder)


TRAIN_ON = "to train it anew, or with --init-from on from its weights, choose another --out"


def clean_up(folder: Path) -> None:
    """Finish or remove what a killed writer left behind."""
    for place in (folder.parent, folder, folder / "train"):
        remove_leftovers(place)
    with contextlib.suppress(UserError):  # an unreadable manifest is reported where it is needed
        finish_saving(folder)


def run_steps(
    stage: Stage,
    config: TrainConfig,
    device: torch.device,
    folder: Path,
    manifest: Manifest,
    check_lock: Callable[[], object],
    stream: StepStream | None,
) -> Manifest:
    """Take the steps that are left, saving, validating and drawing on the way.

    Args:
        check_lock: called before anything is saved; it raises UserError if the folder has been deleted.

    Returns the manifest, which also says where the learning rate was changed.
    """
    model, average, objective = place(stage, config, device)
    optimizers = make_optimizers(model, config.lr, config.weight_decay, config.betas, config.muon_lr)
    progress = load_state(folder / "train" / "state.safetensors", model, average, optimizers)
    go_on(progress, config, run_checksum(manifest), folder)
    if runtime.is_main():
        record_run(folder, manifest)
    if progress.rates:
        manifest = replace(manifest, training=manifest.training | {"resumed_with": progress.rates})
    if config.recompute:
        recompute(model)
    if config.compile:
        compile_blocks(model)
    log = Log(folder / "train" / "metrics.jsonl", stage, config, progress, stream or f"{stage.size} examples")
    states = open_states(folder / "train", is_sharded(config))
    model.train()
    gradients = make_gradients(objective, config, device)
    place_in_run = (stage, config, progress.step, device)
    drawn = stream.batches(*place_in_run, progress.stream) if stream else batches(*place_in_run)
    with signals.postponed() as stop, contextlib.closing(drawn) as to_come:
        while progress.step < config.steps:
            states.check()
            began = time.perf_counter()
            batch = next(to_come)
            figures = take_step(config, batch, objective, gradients, optimizers, progress)
            if log.is_due(progress.step + 1):
                figures |= {name: sharding.whole(figure) for name, figure in stage.figures(batch).items()}
            update_ema(average, model, progress.step, config.ema)
            progress.step += 1
            progress.seconds += time.perf_counter() - began
            stopping = runtime.largest(stop.number, device)
            log.record_step(figures)
            last = progress.step == config.steps
            evaluated = last or progress.step % config.evaluate_every == 0
            saved = evaluated or stopping or progress.step % config.save_every == 0
            previewed = last or progress.step % config.preview_every == 0
            if saved:
                progress.stream = runtime.gather_values(stream.state) if stream else []
                log.average_over_ranks()
                log.check_finite(tensors := states.tensors(model, average, optimizers))
            if runtime.is_main() and (saved or previewed):
                check_lock()
            if evaluated or previewed:
                figures = look_at(stage, average, log, previewed, evaluated)
            if evaluated:
                keep_best(stage, average, folder, replace(manifest, step=progress.step, figures=figures), progress)
                if runtime.is_main():
                    log.record_validation(figures)
            if saved:
                states.save(tensors, progress)
            if stopping:
                states.finish()
                log.close()
                stop_here(f"{stage.name}: stopped by {{}} after step {progress.step}, which is saved", stopping)
    states.finish()
    log.close()
    return manifest


def is_sharded(config: TrainConfig) -> bool:
    """Whether the ranks share the weights out. A lone rank has nobody to share with."""
    return config.shard and runtime.world_size() > 1


def place(stage: Stage, config: TrainConfig, device: torch.device) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The model and its moving average, which starts as the model, on the device; and the objective, in its engine."""
    shared = is_sharded(config)
    if not shared:
        stage.model.to(device, memory_format=torch.channels_last)  # convolutions are faster so
        stage.objective.to(device)
    average = copy.deepcopy(stage.model).requires_grad_(False).eval()
    objective = sharding.shard(stage.objective, device) if shared else runtime.distributed(stage.objective)
    if shared:
        sharding.share_out(average, stage.model)
    return stage.model, average, objective


def go_on(progress: Progress, config: TrainConfig, run: str, folder: Path) -> None:
    """Check that an interrupted run may go on, and print where rounding will differ."""
    if progress.run not in ("", run):
        raise UserError(f"{folder / 'train'} holds the state of a run with other settings; choose another --out")
    if config.resume_with is not None and not progress.step:
        raise UserError("--resume-with goes on from a saved state, but there is none; set --train.lr instead")
    if config.resume_with not in (None, peak_rate(config, progress)):
        progress.rates.append([progress.step, config.resume_with])
    here = {"thread": torch.get_num_threads(), "rank": runtime.world_size()}
    there = {"thread": progress.threads, "rank": progress.ranks}
    if progress.step and here != there:
        now, before = (", ".join(quantity(count, name) for name, count in place.items()) for place in (here, there))
        runtime.print0(
            f"going on with {now} (threads of each rank), after {before}: rounding differs, so the weights will not be "
            "bit for bit those of an uninterrupted run"
        )
    progress.run = run


def peak_rate(config: TrainConfig, progress: Progress) -> float:
    """The peak learning rate at the step."""
    return progress.rates[-1][1] if progress.rates else config.lr


def stop_here(what: str, number: int) -> None:
    """End the program as the signal `number` asks for, once all ranks are here."""
    runtime.barrier()
    runtime.print0(f"{what.format(signals.name(number))}; {signals.how_to_go_on()}")
    runtime.end()
    sys.exit(128 + number)


def take_step(
    config: TrainConfig,
    batch: TensorBatch,
    objective: nn.Module,
    gradients: Gradients,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
) -> dict[str, float | Tensor]:
    """Take one optimiser step. Returns its loss, gradient norm and learning rate."""
    peak = peak_rate(config, progress)
    objective.zero_grad()
    loss = gradients(batch)
    norm = nn.utils.clip_grad_norm_(objective.parameters(), config.clip_grad)
    factor = cosine_warmup(progress.step, config.steps, config.warmup)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (peak / config.lr) * factor
        optimizer.step()
    figures = {"loss": loss, "grad_norm": norm.detach(), "lr": peak * factor}
    return {name: sharding.whole(figure) for name, figure in figures.items()}


def make_gradients(objective: nn.Module, config: TrainConfig, device: torch.device) -> Gradients:
    """The gradients of a batch's loss, in parts or as a CUDA graph where the options ask for it."""

    def gradients(batch: TensorBatch) -> Tensor:
        return backward(objective, batch.split(config.accumulate), device, config.precision)

    return recorded(gradients, objective, config, device)


def backward(
    objective: nn.Module, parts: list[TensorBatch], device: torch.device, precision: runtime.Precision
) -> Tensor:
    """Add the gradient of a batch's loss, part after part, to that of the weights. Returns the loss."""
    size = sum(len(part) for part in parts)
    total = torch.zeros((), device=device)
    for i, part in enumerate(parts, 1):
        with runtime.gradients_meet(objective, now=i == len(parts)):
            with runtime.autocast(device, precision):
                loss = objective(part) * (len(part) / size)
            loss.backward()
        total = total + loss.detach()
    return total


def look_at(stage: Stage, average: nn.Module, log: Log, previewed: bool, evaluated: bool) -> dict[str, float]:
    """Draw a preview, and take the validation figures. All ranks must call it; the main one gets the figures."""
    whole = sharding.made_whole(average, wanted=runtime.is_main())
    if not runtime.is_main():
        return {}
    with torch.inference_mode():
        if previewed:
            log.save_preview(stage.preview(whole))
        return stage.evaluate(whole) if evaluated else {}


def keep_best(stage: Stage, average: nn.Module, folder: Path, manifest: Manifest, progress: Progress) -> None:
    """Save the averaged weights if the manifest's figures are the best so far. All ranks must call it."""
    is_best = runtime.is_main() and is_better(stage, manifest, progress.best)
    if not runtime.gather_values(is_best or not (folder / "config.json").exists())[0]:
        return
    if runtime.is_main():
        progress.best = manifest.figures[stage.best_is[0]]
        save_part(folder, average, manifest, sharding.whole)
    else:
        for _ in stream_tensors(average.state_dict(), sharding.whole):
            pass


def is_better(stage: Stage, manifest: Manifest, best: float | None) -> bool:
    """Whether the manifest's figures are better than the best so far. Raises UserError if they are no numbers."""
    key, direction = stage.best_is
    figure = manifest.figures[key]
    if not math.isfinite(figure):
        raise UserError(
            f"{stage.name}: validation {key} is {figure} at step {manifest.step}, though all weights are finite; "
            "train with other settings in another --out"
        )
    sign = 1 if direction == "highest" else -1
    return best is None or sign * figure > sign * best


def finish(folder: Path, manifest: Manifest) -> None:
    """Finish a training: mark it as complete, store its settings of sampling, and renew the index.

    The same command repeats this where it was interrupted, or stores other settings of sampling.
    """
    saved = read_manifest(folder)
    training = saved.training | {k: v for k, v in manifest.training.items() if k == "resumed_with"}
    wanted = replace(saved, complete=True, sampling=manifest.sampling, training=training)
    if json_sha256(asdict(saved)) != json_sha256(asdict(wanted)):
        write_index(folder.parent, leave_out=folder.name)
        save_changed_manifest(folder, wanted)
    write_index(folder.parent)
