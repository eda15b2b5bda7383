"""Recorded steps, without a GPU: the recorder's logic, and that no pass waits for its device or copies to it."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from planned import draw, make_stage, options
from runs import CPU, assert_same_run
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy import SETTINGS, LineStage, Points, train

from stages import cuda_graph, loop, runtime
from stages.batches import StepDraw
from stages.cuda_graph import MOST_GRAPHS, Recorder, is_recorded, recorded
from stages.optim import make_optimizers
from stages.plan.plan_report import plan_parts
from stages.plan.pretended import PretendedDevice
from stages.state import Progress
from unclip.registry import PARTS, find_kind, resolve

CUDA = torch.device("cuda")
KINDS = [(part, kind) for part, row in PARTS.items() for kind in row.kinds]


class PretendedCapture:
    """Computes the captured batch at each replay, and puts the results where the first ones lie, as a graph does."""

    def __init__(self, fails: bool = False):
        self.fails = fails
        self.captured = 0
        self.replays = 0

    def __call__(self, function):
        if self.fails:
            function()
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        self.captured += 1
        results = [None if result is None else torch.full_like(result, torch.nan) for result in function()]

        def replay():
            self.replays += 1
            for place, result in zip(results, function(), strict=True):
                assert (place is None) == (result is None)
                if place is not None:
                    place.copy_(result)

        return results, replay


# --- the recorder -----------------------------------------------------------------------------------------------------


def points(count: int, seed: int) -> Points:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return Points(x, x.sum(dim=1, keepdim=True))


class Halves(nn.Module):
    """A linear map, and a second one that no loss reads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.read = nn.Linear(3, 1)
        self.unread = nn.Linear(3, 1)

    def gradients(self, batch: Points) -> Tensor:
        loss = (self.read(batch.x) - batch.y).square().mean()
        loss.backward()
        return loss.detach()


def test_shape_is_recorded_when_it_comes_twice_in_a_row_and_others_are_left_eager():
    model = Halves()
    capture = PretendedCapture()
    recorder = Recorder(model.gradients, list(model.parameters()), capture)
    losses = []
    replays = []
    for seed, count in enumerate([4, 4, 5, 4, 5, 6, 6, 4]):
        model.zero_grad()
        losses.append(recorder(points(count, seed)))
        replays.append(capture.replays)
        found = [parameter.grad for parameter in model.parameters()]
        found = [None if gradient is None else gradient.clone() for gradient in found]
        model.zero_grad()
        expected = model.gradients(points(count, seed))
        assert torch.equal(losses[-1], expected)
        for gradient, parameter in zip(found, model.parameters(), strict=True):
            assert gradient is parameter.grad is None or torch.equal(gradient, parameter.grad)
    assert replays == [0, 1, 1, 2, 2, 2, 3, 4]
    assert capture.captured == 2
    assert len(set(losses)) == len(losses), "a replay must not change losses that were returned before"


def test_recorded_batch_is_not_changed_by_later_ones():
    model = Halves()
    recorder = Recorder(model.gradients, list(model.parameters()), PretendedCapture())
    kept = [points(4, seed) for seed in range(4)]
    for batch in kept:
        recorder(batch)
    assert all(torch.equal(batch.x, points(4, seed).x) for seed, batch in enumerate(kept))


def test_no_more_than_so_many_shapes_are_recorded():
    model = Halves()
    capture = PretendedCapture()
    recorder = Recorder(model.gradients, list(model.parameters()), capture)
    for count in range(2, 2 * MOST_GRAPHS):
        recorder(points(count, 0)), recorder(points(count, 1))
    assert capture.captured == MOST_GRAPHS


def test_capture_that_fails_leaves_steps_eager_with_one_line(capsys):
    model = Halves()
    recorder = Recorder(model.gradients, list(model.parameters()), PretendedCapture(fails=True))
    for seed in range(4):
        model.zero_grad()
        recorder(points(4, seed))
        found = model.read.weight.grad.clone()
        model.zero_grad()
        model.gradients(points(4, seed))
        assert torch.equal(found, model.read.weight.grad)
    assert capsys.readouterr().err == (
        "steps are not recorded as CUDA graphs any more (operation not permitted when stream is capturing)\n"
    )


@pytest.mark.parametrize(
    ("options", "ranks", "reasons"),
    [
        ({}, 1, None),
        ({"cuda_graph": False}, 1, None),
        ({"accumulate": 2}, 1, "--train.accumulate"),
        ({"recompute": True}, 2, "several ranks and --train.recompute"),
    ],
)
def test_one_line_says_why_steps_on_a_gpu_are_not_recorded(options, ranks, reasons, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "world_size", lambda: ranks)
    monkeypatch.setattr(cuda_graph, "CUDACapture", PretendedCapture)
    config = replace(SETTINGS, **options)
    model = Halves()
    found = recorded(model.gradients, model, config, CUDA)
    assert isinstance(found, Recorder) == is_recorded(config, CUDA) == (not options)
    assert recorded(model.gradients, model, config, CPU) == model.gradients
    line = f"steps are not recorded as CUDA graphs, because of {reasons}\n" if reasons else ""
    assert capsys.readouterr().err == line


# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def record_on_cpu(monkeypatch) -> PretendedCapture:
    capture = PretendedCapture()
    monkeypatch.setattr(cuda_graph, "is_recorded", lambda config, device: True)
    monkeypatch.setattr(cuda_graph, "CUDACapture", lambda: capture)
    return capture


def test_recorded_training_is_that_without_to_the_bit(tmp_path, record_on_cpu, monkeypatch):
    config = replace(SETTINGS, evaluate_every=SETTINGS.steps, preview_every=SETTINGS.steps)
    train(tmp_path / "recorded", LineStage(), config)
    assert (record_on_cpu.captured, record_on_cpu.replays) == (1, SETTINGS.steps - 1)
    monkeypatch.undo()
    train(tmp_path / "eager", LineStage(), config)
    assert_same_run(tmp_path / "recorded", tmp_path / "eager")


@pytest.mark.parametrize("part", ["clip", "decoder"])
def test_recorded_steps_of_a_part_are_those_without_to_the_bit(part, record_on_cpu, monkeypatch):
    """With Muon, on batches whose captions differ in number."""

    def take_steps() -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(0)
        stage = make_stage("tiny", part)
        config = replace(SETTINGS, muon_lr=0.01)
        optimizers = make_optimizers(stage.model, config.lr, config.weight_decay, config.betas, config.muon_lr)
        gradients = loop.make_gradients(stage.objective, config, CPU)
        progress = Progress()
        losses = []
        for progress.step in range(5):
            batch = draw(stage, 4)[torch.arange(4).roll(progress.step)] if part != "clip" else draw(stage, 4)
            losses.append(loop.take_step(config, batch, stage.objective, gradients, optimizers, progress)["loss"])
        return losses, list(stage.model.parameters())

    with_graph = take_steps()
    assert record_on_cpu.replays == 4
    monkeypatch.undo()
    torch.testing.assert_close(with_graph, take_steps(), rtol=0, atol=0)


def test_captions_rounded_up_change_no_loss_and_no_gradient():
    """The last caption is repeated, and padding added."""
    torch.manual_seed(0)
    stage = make_stage("tiny", "clip")
    images = stage.train_data.images.random_()
    stage.token_ids[:, 1:-1].random_(2, 20)
    stage.token_ids[:, 5:] = stage.model.config.text.eos_id
    rows = torch.arange(len(images)).repeat(2)[:18]  # 16 captions
    drawn = partial(StepDraw, rows, seed=0, step=0)
    results = []
    shapes = []
    for even in (False, True):
        batch = stage.batch(drawn(generator=torch.Generator().manual_seed(0), even=even))
        shapes.append(tuple(batch.token_ids.shape))
        stage.model.zero_grad()
        loss = stage.objective(batch)
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in stage.model.parameters())])
    assert shapes == [(16, 6), (16, 8)]
    torch.testing.assert_close(*results)


# --- passes that a graph can hold -------------------------------------------------------------------------------------


class NoWaiting(TorchDispatchMode):
    """Refuse copies between devices. Meta tensors, which have no values, refuse by themselves that these are read."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor) and leaf.ndim]
        assert len({tensor.is_meta for tensor in tensors}) < 2, f"{function.name()} works on two devices"
        return result


class NoValuesOfPython(TorchFunctionMode):
    """Refuse tensors that are made on the device from numbers of Python, which are copied there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = getattr(function, "__name__", "") in ("new_tensor", "tensor", "as_tensor")
        assert not (made and result.is_meta), f"{args} is copied to the device"
        return result


@cache
def planned_parts():
    return plan_parts(options("tiny"))


@pytest.mark.parametrize(
    "waits",
    [lambda x: x.new_tensor([1.0]), lambda x: torch.tensor([1.0], device=x.device), lambda x: x.sum().item(),
     lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x[torch.tensor([0])], lambda x: torch.ones(3).to(x.device)],
)  # fmt: skip
def test_waiting_for_the_device_is_noticed(waits):
    x = torch.empty(3, device="meta")
    with PretendedDevice("cuda"), NoWaiting(), NoValuesOfPython(), pytest.raises((AssertionError, RuntimeError)):
        waits(x)


@pytest.mark.parametrize(("part", "kind"), KINDS)
def test_forward_and_backward_pass_never_wait_for_the_device(part, kind):
    """A copy from the CPU, or a number that Python reads, would end the capture of a graph."""
    run = resolve(find_kind(part, kind).presets)["tiny"]
    run = replace(run, levels=4) if part == "fast_decoder" else run  # its teacher takes a step to each of them
    inputs = planned_parts()["clip" if part == "clip" else "prior"].inputs
    stage_class = resolve(find_kind(part, kind).stage)
    stage = stage_class(run, stage_class.build_model(run, inputs.shapes), inputs, CPU)
    batch = draw(stage, 4).to("meta")
    stage.objective.to("meta")
    with NoWaiting():
        with PretendedDevice("cuda", torch.bfloat16), NoValuesOfPython():
            loss = stage.objective(batch)
        loss.backward()
    assert any(parameter.grad is not None for parameter in stage.model.parameters())
