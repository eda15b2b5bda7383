"""A stage of another kind than the three: linear regression.

Also a program: toy.py FOLDER [NAME=VALUE ...]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import os
import time

import torch
from PIL import Image
from torch import Tensor, nn

from stages import loop, runtime
from stages.batches import StepDraw
from unclip.cli.options import command_line
from unclip.cli.run import run
from unclip.store.manifest import Manifest
from unclip.tensor_batch import TensorBatch

SETTINGS = loop.TrainConfig(
    steps=12, batch_size=8, lr=0.05, warmup=3, ema=0.8, evaluate_every=4, preview_every=6, log_every=2, device="cpu",
    precision="float32",
)  # fmt: skip
OFTEN_SAVED = replace(SETTINGS, save_every=2, log_every=3)


@dataclass(frozen=True)
class LineConfig:
    inputs: int = 3


class Line(nn.Module):
    config_class = LineConfig

    def __init__(self, config: LineConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.inputs, 1)


@dataclass(frozen=True)
class Points(TensorBatch):
    x: Tensor
    y: Tensor


class LineObjective(nn.Module):
    """Squared error. SLOWLY in the environment is how many seconds each call takes."""

    def __init__(self, model: Line):
        super().__init__()
        self.model = model
        self.calls = 0
        self.poison: dict[int, float] = {}
        """Maps a call's number to the factor of its loss."""

    def forward(self, batch: Points) -> Tensor:
        time.sleep(float(os.environ.get("SLOWLY", "0")))
        self.calls += 1
        error = (self.model.linear(batch.x) - batch.y).square().mean()
        return error * self.poison.get(self.calls, 1.0)


class LineStage:
    """Fits y = x @ (1, 2, 3); `noise` blurs the inputs anew at every step."""

    name = "line"
    best_is = ("error", "lowest")

    def __init__(self, noise: float = 0.3):
        with runtime.seeded(0):
            self.model = Line(LineConfig())
        self.objective = LineObjective(self.model)
        self.noise = noise
        self.x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        self.y = self.x @ torch.tensor([[1.0], [2.0], [3.0]])
        self.size = len(self.x)
        self.batches: list[Tensor] = []

    def batch(self, draw: StepDraw) -> Points:
        self.batches.append(draw.rows)
        rows = draw.share(draw.rows)
        return Points(self.x[rows] + self.noise * draw.normal(3), self.y[rows])

    def figures(self, batch: Points) -> dict[str, float | Tensor]:
        return {"drawn": float(len(batch))}

    def evaluate(self, model: Line) -> dict[str, float]:
        torch.manual_seed(99)  # a careless stage: the loop must not let this leak into the training
        return {"error": (model.linear(self.x) - self.y).square().mean().item()}

    def preview(self, model: Line) -> Image.Image:
        return Image.new("L", (4, 4), int(model.linear.bias.nan_to_num().abs().item() * 10) % 256)


def manifest(config: loop.TrainConfig = SETTINGS) -> Manifest:
    training = {"train": {"lr": config.lr, "steps": config.steps, "seed": config.seed}}
    return Manifest("line", data={"name": "line"}, training=training)


def train(
    folder: Path, stage: LineStage | None = None, config: loop.TrainConfig = SETTINGS, described: Manifest | None = None
) -> Manifest:
    return loop.train(stage or LineStage(), config, torch.device("cpu"), folder, described or manifest(config))


def main(argv: Sequence[str] | None = None) -> None:
    folder, *options = command_line(argv)
    changed = {name: json.loads(value) for name, value in (option.split("=") for option in options)}
    runtime.start("cpu")
    train(Path(folder), config=replace(OFTEN_SAVED, **changed))
    runtime.end()


if __name__ == "__main__":
    run(main)
