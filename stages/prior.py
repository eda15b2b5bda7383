"""Train the diffusion prior: captions -> the frozen CLIP's image embeddings."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stages import loop, runtime
from stages.data import DataConfig
from stages.frozen import Frozen, prepare
from unclip.checkpoint import Manifest
from unclip.images import captioned_grid
from unclip.metrics import same_group_ceiling
from unclip.prior import Prior, PriorConfig, draw_embeddings
from unclip.settings import Sampling


@dataclass(frozen=True)
class PriorRun:
    out: Path = Path("checkpoints/run")
    """Folder of the pipeline, which holds a trained clip; the prior goes to its subfolder prior."""
    preset: str = "quick"
    """Defaults of all other options: tiny (tests), quick (a laptop) or base (one GPU)."""
    drop: float = 0.1
    """Share of the captions that are replaced by the learned null, for guidance."""
    evaluate_on: int = 1000
    """Validation images that the figures are taken on."""
    data: DataConfig = field(default_factory=DataConfig)
    model: PriorConfig = field(default_factory=PriorConfig)
    train: loop.TrainConfig = field(default_factory=loop.TrainConfig)


class PriorStage:
    """Gives the loop the squared error on the clean embedding, and cosines on held-out pairs."""

    name = "prior"
    best_is = ("cosine_sample", "highest")

    def __init__(self, model: Prior, frozen: Frozen, drop: float, evaluate_on: int, device: torch.device):
        self.model, self.frozen, self.drop, self.device = model, frozen, drop, device
        self.diffusion = model.diffusion()
        self.size = len(frozen.data)
        self.evaluate_on = evaluate_on

    def loss(self, model: Prior, rows: Tensor) -> tuple[Tensor, dict[str, float | Tensor]]:
        captions = self.frozen.data.draw(rows, False).to(self.device)
        drop = (torch.rand(len(rows)) < self.drop).to(self.device)
        t = self.diffusion.draw_timesteps(len(rows))
        x0 = model.scaler.scale(self.frozen.embedded.images[rows.to(self.device)])
        noise = torch.randn(x0.shape).to(self.device)
        prefix = model.prefix(*self.frozen.embedded.captions(captions), drop)
        predicted = model(self.diffusion.add_noise(x0, noise, t), t.to(self.device), prefix)
        return F.mse_loss(predicted.float(), self.diffusion.target(x0, noise, t)), {}

    def evaluate(self, model: Prior) -> dict[str, float]:
        """Mean cosines to the true image embeddings of held-out pairs, side by side.

        cosine_sample should be well above cosine_text, near cosine_ceiling (two images of one caption), and
        cosine_unrelated (the sample against the image of another caption) far below.
        """
        embedded = self.frozen.embedded_validation
        torch.manual_seed(0)
        groups = self.frozen.validation.draw(torch.arange(len(embedded.images)), False)
        captions, true = groups[: self.evaluate_on], embedded.images[: self.evaluate_on]
        text, encodings, mask = embedded.captions(captions.to(self.device))
        rows = torch.arange(len(captions), device=self.device)
        sample = draw_embeddings(
            model, text, encodings, mask, rows, range(len(rows)), Sampling(draws=1, batch_size=500)
        )
        other, apart = true.roll(1, dims=0), captions != captions.roll(1)
        figures = {
            "cosine_sample": (sample * true).sum(dim=1).mean().item(),
            "cosine_text": (text * true).sum(dim=1).mean().item(),
            "cosine_unrelated": (sample * other).sum(dim=1)[apart].mean().item(),
        }
        if groups.unique().numel() < len(groups):
            figures["cosine_ceiling"] = same_group_ceiling(embedded.images.cpu(), groups)
        return figures

    def preview(self, model: Prior) -> Image.Image:
        """For some captions, the validation images whose embeddings are nearest to eight draws of the prior."""
        embedded, validation = self.frozen.embedded_validation, self.frozen.validation
        torch.manual_seed(0)
        captions = validation.draw(torch.arange(10), False)
        rows = torch.arange(10, device=self.device).repeat_interleave(8)
        drawn = draw_embeddings(
            model, *embedded.captions(captions.to(self.device)), rows, list(range(8)) * 10, Sampling()
        )
        nearest = (drawn @ embedded.images.T).argmax(dim=1).view(10, 8).cpu()
        images = validation.images.permute(0, 2, 3, 1).numpy()
        return captioned_grid([(validation.captions[c], images[i]) for c, i in zip(captions, nearest, strict=True)])


def train(run: PriorRun) -> Manifest:
    """Train a prior on the CLIP in run.out. Returns the manifest of the trained prior."""
    device = runtime.start(run.train.device)
    frozen = prepare(run.out, run.data, device)
    clip = frozen.clip.config
    torch.manual_seed(run.train.seed)
    model = Prior(replace(run.model, embed_dim=clip.embed_dim, text_width=clip.text.width, context=clip.text.context))
    model.scaler.fit(frozen.embedded.images)
    stage = PriorStage(model, frozen, run.drop, run.evaluate_on, device)
    return loop.train(stage, run.train, device, run.out, frozen.manifest("prior", loop.settings(run)))
