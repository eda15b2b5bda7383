"""Train the diffusion prior: captions -> the frozen CLIP's image embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from stages.batches import StepDraw
from stages.inputs import Inputs
from stages.prior_base import BasePriorRun, BasePriorStage, weighted_error
from stages.run_options import noise_level_conflicts
from unclip.clip import TextFeatures
from unclip.diffusion.prediction import training_target
from unclip.diffusion.process import NoiseLevels
from unclip.fields import bounded
from unclip.prior import DiffusionPrior, DiffusionPriorConfig
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class PriorRun(BasePriorRun):
    kind: str = bounded("diffusion", affects_weights=False)
    """Kind of the prior, of those in unclip/registry.py."""
    log_sigma: tuple[float, float] | None = bounded((-0.8, 1.4), -10, 10)
    """Mean and deviation of the logarithm of the noise over the signal in training; None for uniform times."""
    whitening: float | None = bounded(0.5, 0, 1)
    """Scale embeddings along their principal components, each divided by its deviation to this power; None scales along
    CLIP's coordinates, each divided by its deviation. Fine-tuning keeps the scaling of the weights it begins with."""
    model: DiffusionPriorConfig = bounded(DiffusionPriorConfig(), affects_weights=False)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from super().conflicts()
        yield from noise_level_conflicts(self)


@dataclass(frozen=True)
class PriorBatch(TensorBatch):
    embeddings: Tensor
    """Unit image embeddings (B, D)."""
    text: TextFeatures
    levels: NoiseLevels
    noise: Tensor
    """(B, D)."""
    weights: Tensor
    """Each pair's weight in the loss (B,)."""


class PriorObjective(nn.Module):
    def __init__(self, model: DiffusionPrior):
        super().__init__()
        self.model = model

    def forward(self, batch: PriorBatch) -> Tensor:
        """Weighted squared error on the target, for the residual of the scaled embedding to its linear prediction."""
        errors = self.model.squared_errors(batch.embeddings, batch.text, batch.levels, batch.noise)
        return (batch.weights * errors).mean()

    def chance(self, batch: PriorBatch) -> Tensor:
        """The loss of a prior that answers the mean of all images to everything."""
        x0 = self.model.scaler.scale(batch.embeddings)
        levels = batch.levels
        prediction = self.model.config.diffusion.prediction
        target = training_target(prediction, x0, batch.noise, levels.alpha[:, None], levels.sigma[:, None])
        return weighted_error(torch.zeros_like(target), target, batch.weights)


class PriorStage(BasePriorStage):
    """Gives the loop the diffusion loss on embeddings, and the same and cosines on validation pairs."""

    model_class: ClassVar[type] = DiffusionPrior

    def __init__(self, run: PriorRun, model: DiffusionPrior, inputs: Inputs, device: torch.device):
        super().__init__(run, model, inputs, device)
        self.objective = PriorObjective(model)
        self.process = model.process
        steps = min(run.sampling.steps, model.config.diffusion.timesteps)
        self.sampling = replace(run.sampling, steps=steps)

    def fit_scaler(self, images: Tensor) -> None:
        if self.run.whitening is None:
            self.model.scaler.fit(images)
        else:
            self.model.scaler.fit_components(images, self.run.whitening)

    def batch(self, draw: StepDraw) -> PriorBatch:
        caption_ids = self.draw_captions(draw)
        levels = draw.share(self.process.draw_levels(len(draw.rows), draw.generator, self.run.log_sigma))
        text = self.read_captions(caption_ids, draw)
        embeddings = draw.examples(self.inputs.train).embeddings[draw.share(draw.rows)]
        noise = draw.normal(embeddings.shape[1])
        return PriorBatch(embeddings, text, levels, noise, self.pair_weights(text, draw))

    def figures(self, batch: PriorBatch) -> dict[str, float | Tensor]:
        return {"chance_loss": PriorObjective(self.model).chance(batch)}

    def evaluate(self, model: DiffusionPrior) -> dict[str, float]:
        return super().evaluate(model) | {"embedding_std": model.scaler.std.mean().item()}

    def validation_loss(
        self, model: DiffusionPrior, rows: Tensor, caption_ids: Tensor, generator: torch.Generator
    ) -> float:
        images = self.inputs.validation
        embeddings = images.embeddings[rows]
        batch = PriorBatch(
            embeddings=embeddings,
            text=images.text_features(caption_ids),
            levels=self.process.draw_levels(len(rows), generator, self.run.log_sigma),
            noise=torch.randn(embeddings.shape, generator=generator),
            weights=images.data.pair_weights[rows],
        )
        return PriorObjective(model)(batch.to(self.device)).item()
