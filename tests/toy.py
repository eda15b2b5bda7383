"""A stage of another kind than the three: linear regression. Also a program for torchrun: toy.py FOLDER STEPS."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stages import loop, runtime
from unclip.store.manifest import Manifest
from unclip.tensor_batch import TensorBatch

SETTINGS = loop.TrainConfig(
    steps=12, batch_size=8, lr=0.05, warmup=3, ema=0.8, evaluate_every=4, preview_every=6, log_every=2, device="cpu",
    precision="float32",
)  # fmt: skip


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
    def __init__(self, model: Line):
        super().__init__()
        self.model = model

    def forward(self, batch: Points) -> Tensor:
        return (self.model.linear(batch.x) - batch.y).square().mean()


class LineStage:
    """Fits y = x @ (1, 2, 3); `noise` blurs the inputs anew at every step. Hooks let a test break it off."""

    name = "line"
    best_is = ("error", "lowest")

    def __init__(self, noise: float = 0.3):
        self.model = make_line()
        self.objective = LineObjective(self.model)
        self.noise = noise
        self.x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        self.y = self.x @ torch.tensor([[1.0], [2.0], [3.0]])
        self.size = len(self.x)
        self.batches: list[Tensor] = []

    def batch(self, rows: Tensor, generator: torch.Generator) -> Points:
        self.batches.append(rows)
        return Points(self.x[rows] + self.noise * torch.randn(len(rows), 3, generator=generator), self.y[rows])

    def figures(self, batch: Points) -> dict[str, float | Tensor]:
        return {"drawn": float(len(batch))}

    def evaluate(self, model: Line) -> dict[str, float]:
        torch.manual_seed(99)  # a careless stage: the loop must not let this leak into the training
        return {"error": (model.linear(self.x) - self.y).square().mean().item()}

    def preview(self, model: Line) -> Image.Image:
        return Image.new("L", (4, 4), int(model.linear.bias.nan_to_num().abs().item() * 10) % 256)


def make_line() -> Line:
    torch.manual_seed(0)
    return Line(LineConfig())


def manifest() -> Manifest:
    return Manifest("line", data={"name": "line"}, training={"train": {"lr": SETTINGS.lr, "seed": SETTINGS.seed}})


if __name__ == "__main__":
    device = runtime.start("cpu")
    loop.train(LineStage(noise=0.0), SETTINGS, device, Path(sys.argv[1]), manifest())
    sys.stdout.write(f"rank {runtime.rank()} of {runtime.world_size()}\n")  # at once: print writes the line's end apart
