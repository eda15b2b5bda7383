"""Plans of the presets, stages with real models on the planner's inputs, and what those take."""

import weakref
from dataclasses import replace
from functools import cache

import torch
from conftest import REQUIRED
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.batches import StepDraw
from stages.plan.counting import PartCost, count_part
from stages.plan.layout import Budget
from stages.plan.plan_options import PlanOptions, plan_presets
from stages.plan.plan_report import make_budgets, plan_parts
from unclip.registry import find_kind, resolve
from unclip.tensor_batch import TensorBatch

PRESETS = ("tiny", "quick", "small", "base", "paper")
RUN_HERE = [(preset, part) for preset in ("tiny", "quick") for part in REQUIRED]


def options(preset: str, **others) -> PlanOptions:
    return replace(plan_presets()[preset], **others)


@cache
def budget(preset: str, part: str, **others) -> Budget:
    chosen = options(preset, **others)
    return make_budgets(chosen, {part: plan_parts(chosen)[part]})[part]


def cost(preset: str, part: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PartCost:
    """Count a part once: with or without the defaults, a call has the same key in the cache."""
    return count_once(preset, part, device, dtype)


@cache
def count_once(preset: str, part: str, device: str, dtype: torch.dtype) -> PartCost:
    planned = plan_parts(options(preset))[part]
    return count_part(part, planned.run, planned.inputs, device, dtype)


def saved_bytes(counted: PartCost, size: int) -> float:
    """Bytes kept of a batch of that size."""
    return counted.saved.fixed + counted.saved.per_example * size + counted.saved.per_pair * size**2


def make_stage(preset: str, part: str, **changes):
    """A stage with a real model on the planner's inputs, as `changes` to the trainer's options have it."""
    planned = plan_parts(options(preset))[part]
    run = replace(planned.run, **changes)
    stage_class = resolve(find_kind(part, run.kind).stage)
    return stage_class(run, stage_class.build_model(run, planned.inputs.shapes), planned.inputs, torch.device("cpu"))


def draw(stage, size: int) -> TensorBatch:
    """A batch with captions as long as can be, each of them another."""
    return stage.batch(StepDraw(torch.arange(size), torch.Generator().manual_seed(0), seed=0, step=0))


def step_operations(stage, batch: TensorBatch) -> tuple[float, float]:
    """Operations of a forward pass, and of it with its backward pass, as PyTorch counts them on real tensors."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = stage.objective(batch)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


class Handle:
    """A tensor that is kept for the backward pass, for as long as it is."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()  # with its graph it would keep itself alive


def kept(model: nn.Module, examples, outside: set[int]) -> int:
    """Bytes that a forward pass leaves behind, but for storages that were there before."""
    handles = weakref.WeakSet()

    def pack(tensor: Tensor) -> Handle:
        handles.add(handle := Handle(tensor))
        return handle

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda handle: handle.tensor):
        loss = model(examples)
    storages = {h.tensor.untyped_storage().data_ptr(): h.tensor.untyped_storage().nbytes() for h in handles}
    assert loss.requires_grad  # and so holds the graph until here
    return sum(size for place, size in storages.items() if place not in outside)


def weights(model: nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
