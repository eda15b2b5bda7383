"""Linear regression, a stage of another kind than the three. Also a program: small_stage.py FOLDER [NAME=VALUE ...]"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import os
import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages import loop, runtime
from unclip.cli.options import command_line
from unclip.cli.run import run
from unclip.store.manifest import Manifest
from unclip.tensor_batch import TensorBatch

SETTINGS = loop.TrainConfig(
    steps=12, batch_size=8, lr=0.05, warmup=3, ema=0.8, evaluate_every=4, save_every=2, preview_every=6, log_every=3,
    device="cpu",
)  # fmt: skip


@dataclass(frozen=True)
class SmallConfig:
    inputs: int = 3


class Small(nn.Module):
    config_class = SmallConfig

    def __init__(self, config: SmallConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.inputs, 1)


@dataclass(frozen=True)
class SmallBatch(TensorBatch):
    x: Tensor
    y: Tensor


class Objective(nn.Module):
    def __init__(self, model: Small):
        super().__init__()
        self.model, self.calls, self.poison = model, 0, {}

    def forward(self, batch: SmallBatch) -> Tensor:
        """`poison` maps a call's number to what its loss is multiplied with."""
        time.sleep(float(os.environ.get("SLOWLY", "0")))
        self.calls += 1
        error = F.mse_loss(self.model.linear(batch.x), batch.y)
        return error * self.poison.get(self.calls, 1.0)


class SmallStage:
    name = "small"
    best_is = ("error", "lowest")

    def __init__(self):
        with runtime.seeded(0):
            self.model = Small(SmallConfig())
        self.objective = Objective(self.model)
        self.x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        self.y = self.x @ torch.tensor([[1.0], [2.0], [3.0]])
        self.size = len(self.x)

    def batch(self, rows: Tensor, generator: torch.Generator) -> SmallBatch:
        return SmallBatch(self.x[rows] + 0.3 * torch.randn(len(rows), 3, generator=generator), self.y[rows])

    def figures(self, batch: SmallBatch) -> dict[str, float]:
        return {"drawn": float(len(batch.x))}

    def evaluate(self, model: Small) -> dict[str, float]:
        return {"error": F.mse_loss(model.linear(self.x), self.y).item()}

    def preview(self, model: Small) -> Image.Image:
        return Image.new("L", (4, 4), int(model.linear.bias.abs().item() * 10) % 256)


def manifest(config: loop.TrainConfig = SETTINGS) -> Manifest:
    training = {"train": {"lr": config.lr, "steps": config.steps, "seed": config.seed}}
    return Manifest("small", data={"name": "small"}, training=training)


def train(folder: Path, stage: SmallStage | None = None, config: loop.TrainConfig = SETTINGS) -> Manifest:
    return loop.train(stage or SmallStage(), config, torch.device("cpu"), folder, manifest(config))


def main(argv: Sequence[str] | None = None) -> None:
    folder, *options = command_line(argv)
    changed = {name: json.loads(value) for name, value in (option.split("=") for option in options)}
    runtime.start("cpu")
    train(Path(folder), config=replace(SETTINGS, **changed))
    print(f"trained by rank {runtime.rank()}")
    runtime.end()


if __name__ == "__main__":
    run(main)
