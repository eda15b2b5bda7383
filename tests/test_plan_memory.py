"""The planned memory of a training, against the memory of real tensors."""

import gc
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from planned import (
    REQUIRED,
    RUN_HERE,
    budget,
    cost,
    draw,
    kept,
    make_stage,
    saved_bytes,
    weights,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

import unclip.layers
from stages.memory import compile_blocks, recompute
from stages.optim import make_optimizers
from stages.plan.layout import Layout
from unclip.clip.loss import contrastive_loss


@pytest.mark.parametrize(("preset", "part"), [*RUN_HERE, ("base", "decoder")])
def test_bytes_counted_are_those_that_autograd_keeps(preset, part):
    stage = make_stage(preset, part)
    measured = kept(stage.objective, draw(stage, 8), weights(stage.model))
    assert saved_bytes(cost(preset, part), 8) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("preset", "part"), RUN_HERE)
def test_plain_attention_keeps_as_much_more_as_is_counted(preset, part, monkeypatch):
    stage = make_stage(preset, part)
    batch = draw(stage, 8)
    plain = kept(stage.objective, batch, weights(stage.model))
    counted = saved_bytes(cost(preset, part), 8) - saved_bytes(cost(preset, part, "cuda"), 8)
    monkeypatch.setattr(unclip.layers, "FEW_KEYS", 0)
    fused = kept(stage.objective, batch, weights(stage.model))
    assert counted == pytest.approx(plain - fused, rel=0.1)


class CudaAutocast(TorchFunctionMode):
    """Do what autocast does on CUDA, by its lists of operations, on any device. Weights are cast once, as there."""

    narrow = (F.linear, F.conv2d, torch.conv2d, F.conv_transpose2d, F.scaled_dot_product_attention, Tensor.matmul)
    wide = (F.layer_norm, F.group_norm, F.mse_loss, F.cross_entropy)

    def __init__(self):
        super().__init__()
        self.weights: dict[int, Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kind = torch.bfloat16 if func in self.narrow else torch.float32 if func in self.wide else None
        if kind:
            args = [self.cast(value, kind) for value in args]
            kwargs = {name: self.cast(value, kind) for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs or {})

    def cast(self, value, kind: torch.dtype):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if isinstance(value, nn.Parameter) and kind == torch.bfloat16:
            return self.weights.setdefault(id(value), value.to(kind))
        return value.to(kind)


@pytest.mark.parametrize(("preset", "part"), RUN_HERE)
def test_half_the_bytes_are_kept_where_autocast_halves_them(preset, part, monkeypatch):
    counted = cost(preset, part, "cuda", torch.bfloat16)
    # both as on a GPU
    monkeypatch.setattr(unclip.layers, "wide_on_cpu", lambda x: x)
    monkeypatch.setattr(unclip.layers, "FEW_KEYS", 0)
    stage = make_stage(preset, part)
    batch = draw(stage, 8)
    with CudaAutocast() as autocast:
        stage.objective(batch)  # so that the cast weights are there
        copies = {weight.untyped_storage().data_ptr() for weight in autocast.weights.values()}
        measured = kept(stage.objective, batch, weights(stage.model) | copies)
    assert saved_bytes(counted, 8) - counted.saved.fixed == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("part", REQUIRED)
def test_copies_of_the_weights_in_bfloat16_are_counted(part):
    counted = cost("quick", part, "cuda", torch.bfloat16)
    in_products = counted.parameters - (1024 * 128 if part == "clip" else 0)  # the table of tokens is only looked up
    assert 2 * in_products == pytest.approx(counted.saved.fixed, rel=0.1)


def test_contrastive_loss_keeps_three_tables():
    rows = [torch.randn(400, 4, requires_grad=True) for _ in range(2)]  # narrow, so that the tables prevail

    class Loss(nn.Module):
        def forward(self, caption: Tensor) -> Tensor:
            return contrastive_loss(*rows, caption, 10.0)

    per_pair = cost("tiny", "clip").saved.per_pair
    assert kept(Loss(), torch.arange(400), set()) == pytest.approx(per_pair * 400**2, rel=0.1)
    assert [cost("tiny", part).saved.per_pair for part in ("prior", "decoder")] == [0, 0]


def peak(work) -> int:
    """The most bytes that work() holds at a time beyond those that were there."""
    gc.collect()  # what earlier tests left must not be freed in between
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize(
    ("preset", "part", "recomputed"),
    [(preset, part, recomputed) for preset, part in RUN_HERE for recomputed in (False, True)],
)
def test_memory_of_a_step_is_what_is_measured(preset, part, recomputed):
    size = 16
    planned = replace(budget(preset, part), batch_size=size, moments=2)
    stage = make_stage(preset, part)
    batch = draw(stage, size)
    if recomputed:
        recompute(stage.model)
    optimizers = make_optimizers(stage.model, 1e-3, 0.05, (0.9, 0.99))

    def step() -> None:
        stage.model.zero_grad()
        stage.objective(batch).backward()
        for optimizer in optimizers:
            optimizer.step()

    step()  # which makes the moments
    stage.model.zero_grad()
    between = planned.state(sharded=False)
    assert planned.memory(Layout(recomputed=recomputed)) == pytest.approx(between + peak(step), rel=0.1)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        *((part, recompute) for part in REQUIRED),
        *((part, partial(compile_blocks, backend="eager")) for part in REQUIRED),
        ("prior", partial(compile_blocks, backend="aot_eager")),  # also compiles the backward pass, which takes longer
    ],
)
def test_recomputed_or_compiled_blocks_change_no_result(part, change):
    """Nor are fewer gradients there."""
    torch.manual_seed(0)
    stage = make_stage("tiny", part)
    if part == "clip":
        stage.train_data.images.random_()
        stage.token_ids[:, 1:-1].random_(2, 20)
    else:
        stage.inputs.train.tokens.normal_()
        stage.inputs.train.data.images.random_()
    batch = draw(stage, 4)
    for parameter in stage.model.parameters():  # some begin at zero, behind which nothing is seen
        nn.init.normal_(parameter, std=0.1)
    results = []
    for _ in range(2):
        stage.model.zero_grad()
        loss = stage.objective(batch)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in stage.model.parameters())])
        change(stage.model)
    torch.testing.assert_close(results[0], results[1])


def test_sharded_state_is_shared_out_and_ddp_keeps_gradients_in_its_buckets():
    one = budget("base", "clip")
    four = budget("base", "clip", gpus=4)
    parameters = one.cost.parameters
    assert one.state(sharded=False) == 4 * 4 * parameters
    assert four.state(sharded=False) == 5 * 4 * parameters
    assert four.state(sharded=True) == one.state(sharded=False) / 4
    assert four.pairs() == one.pairs() / 4
    held = four.state(sharded=False) + four.pairs()
    for parts, earlier in ((1, 0), (4, 4 * parameters)):  # which only the last part puts into buckets
        activations = four.activations(four.share / parts, recomputed=False)
        assert four.memory(Layout(accumulate=parts)) == pytest.approx(held + activations + earlier)


def test_only_a_part_whose_loss_compares_examples_needs_another_forward_pass_to_take_them_in_parts():
    for part in REQUIRED:
        planned = budget("tiny", part)
        more = planned.operations(Layout(accumulate=2)) - planned.operations(Layout())
        assert more == (planned.cost.operations if part == "clip" else 0)
