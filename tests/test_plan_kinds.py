"""Plans of parts that are optional, or of kinds that are not in this repository."""

from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from planned import options
from torch import Tensor, nn

from stages.batches import StepDraw
from stages.loop import TrainConfig
from stages.plan.counting import count_part
from stages.plan.machine import short
from stages.plan.plan_options import plan_presets
from stages.plan.plan_report import plan, plan_parts
from stages.run_options import FrozenCLIPRun, Shapes
from unclip.errors import UserError
from unclip.registry import PARTS, Kind, Part
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class ToyConfig:
    hidden: int = 100


@dataclass(frozen=True)
class ToyRun(FrozenCLIPRun):
    kind: str = "toy"
    model: ToyConfig = ToyConfig()
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=10, batch_size=8))


class Toy(nn.Module):
    """A decoder of two linear layers."""

    def __init__(self, config: ToyConfig, shapes: Shapes):
        super().__init__()
        self.config = config
        self.first = nn.Linear(shapes.embed_dim, config.hidden)
        self.second = nn.Linear(config.hidden, shapes.channels * shapes.image_size**2)
        self.register_buffer("scale", torch.ones(shapes.embed_dim))


@dataclass(frozen=True)
class ToyBatch(TensorBatch):
    pixels: Tensor
    embeddings: Tensor


class ToyObjective(nn.Module):
    def __init__(self, model: Toy):
        super().__init__()
        self.model = model

    def forward(self, batch: ToyBatch) -> Tensor:
        drawn = self.model.second(F.relu(self.model.first(batch.embeddings)))
        return F.mse_loss(drawn.float(), batch.pixels.flatten(1).float())


class ToyStage:
    def __init__(self, run: ToyRun, model: Toy, inputs, device: torch.device):
        self.model = model
        self.inputs = inputs
        self.objective = ToyObjective(model)

    @staticmethod
    def build_model(run: ToyRun, shapes: Shapes) -> Toy:
        return Toy(run.model, shapes)

    def batch(self, draw: StepDraw) -> ToyBatch:
        images = self.inputs.train
        embeddings = images.embeddings[draw.rows] * self.model.scale.cpu()
        return ToyBatch(images.data.images[draw.rows], embeddings)


TOY = Kind(Toy, {"quick": ToyRun()}, ToyStage)


def test_a_kind_from_elsewhere_is_planned_by_its_row_alone(monkeypatch, script):
    monkeypatch.setitem(PARTS["decoder"].kinds, "toy", TOY)
    finished = script("stages.plan.__main__", "--decoder.kind", "toy", "--decoder.model.hidden", 50)
    assert finished.code == 0, finished.err
    parameters = 128 * 50 + 50 + 50 * 784 + 784
    row = next(line for line in finished.out.splitlines() if line.startswith("parameters"))
    assert row.endswith(short(parameters))
    assert "train_decoder.py --kind toy --preset quick" in finished.out


def test_what_a_kind_from_elsewhere_takes_is_counted(monkeypatch):
    monkeypatch.setitem(PARTS["decoder"].kinds, "toy", TOY)
    inputs = plan_parts(options("quick"))["decoder"].inputs
    counted = count_part("decoder", ToyRun(), inputs)
    forward = 2 * (128 * 100 + 100 * 784)
    assert counted.operations == forward
    assert counted.training == 3 * forward - 2 * 128 * 100, "the embeddings have no gradient"
    assert counted.untrained == 128
    assert counted.pixels == 784
    assert counted.block_parameters == counted.block_operations == 0
    assert counted.saved == counted.saved_recomputed, "there is no block to recompute"
    saved = 4 * (128 + 100 + 784 + 784)  # the embeddings, the hidden layer, what is drawn, what should be
    assert counted.saved.per_example == pytest.approx(saved, rel=0.1)


def test_an_optional_part_has_a_column(monkeypatch):
    monkeypatch.setitem(PARTS, "enlarger", Part({"toy": TOY}, parents=("clip",), optional=True))
    presets = plan_presets()
    assert "enlarger" not in plan(presets["quick"])
    report = plan(replace(presets["quick"], also=("enlarger",)))
    assert "decoder              enlarger" in report
    assert "python -m stages.train enlarger --preset quick" in report


def test_the_fast_decoder_s_teacher_is_counted_and_the_upsampler_s_images_are_large():
    planned = plan_parts(options("tiny", also=("fast_decoder", "upsampler")))
    counted = {part: count_part(part, plan.run, plan.inputs) for part, plan in planned.items()}
    student = counted["fast_decoder"]
    assert student.parameters == counted["decoder"].parameters
    assert student.untrained > student.parameters
    run = planned["fast_decoder"].run
    calls = run.points + run.levels  # of the network, forward: the student's, and the teacher's unguided ones
    assert student.operations > 0.8 * calls * counted["decoder"].operations
    assert counted["upsampler"].pixels == (2 * 28) ** 2, "the preset enlarges twice"
    plans = [plan_parts(options("tiny", also=("upsampler",), size=size))["upsampler"] for size in (16, 32)]
    small, large = (count_part("upsampler", plan.run, plan.inputs).operations for plan in plans)
    assert large == pytest.approx(4 * small, rel=0.05)


def test_an_unknown_optional_part_is_refused():
    with pytest.raises(UserError, match="--also takes the optional parts fast_decoder, upsampler, not prior"):
        options("tiny", also=("prior",))
