"""Train the autoregressive prior: captions -> the buckets of image embeddings' principal components."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from stages.batches import StepDraw
from stages.inputs import Inputs
from stages.prior_base import BasePriorRun, BasePriorStage
from unclip.clip import TextFeatures
from unclip.fields import bounded
from unclip.prior.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class AutoregressiveRun(BasePriorRun):
    kind: str = bounded("autoregressive", affects_weights=False)
    """Kind of the prior, of those in unclip/registry.py."""
    likelihood_on: int = bounded(200, 1, 10**7)
    """Validation images that the likelihood is taken on."""
    model: AutoregressivePriorConfig = bounded(AutoregressivePriorConfig(), affects_weights=False)


@dataclass(frozen=True)
class BucketBatch(TensorBatch):
    index: Tensor
    """The bucket (B, R) of each number: the dot product and the principal components."""
    text: TextFeatures
    weights: Tensor
    """Each pair's weight in the loss (B,)."""


class AutoregressiveObjective(nn.Module):
    def __init__(self, model: AutoregressivePrior):
        super().__init__()
        self.model = model

    def forward(self, batch: BucketBatch) -> Tensor:
        """The cross-entropy of a number's bucket, averaged over all numbers and, with their weights, over pairs."""
        return -(batch.weights * self.model.log_probabilities(batch.index, batch.text).mean(dim=1)).mean()

    def chance(self, batch: BucketBatch) -> Tensor:
        """The loss of a prior to which all buckets are equally likely."""
        return batch.weights.mean() * self.model.buckets.counts[: batch.index.shape[1]].log().mean()


class AutoregressiveStage(BasePriorStage):
    """Gives the loop the cross-entropy of buckets; on validation pairs also the likelihood of whole embeddings."""

    model_class: ClassVar[type] = AutoregressivePrior

    def __init__(self, run: AutoregressiveRun, model: AutoregressivePrior, inputs: Inputs, device: torch.device):
        super().__init__(run, model, inputs, device)
        self.objective = AutoregressiveObjective(model)

    def fit_statistics(self, images: Tensor, texts: Tensor) -> None:
        self.model.fit(images, texts)

    def batch(self, draw: StepDraw) -> BucketBatch:
        caption_ids = self.draw_captions(draw)
        text = self.read_captions(caption_ids, draw)
        embeddings = draw.examples(self.inputs.train).embeddings[draw.share(draw.rows)]
        index = self.find_buckets(embeddings, text)
        return BucketBatch(index, text, self.pair_weights(text, draw))

    def find_buckets(self, images: Tensor, text: TextFeatures) -> Tensor:
        """Unit image embeddings (B, D) and their captions -> the buckets (B, R), on the CPU."""
        return self._on_cpu.buckets.index(self._on_cpu.numbers(images, text.embedding))

    @cached_property
    def _on_cpu(self) -> AutoregressivePrior:
        """The model with its statistics on the CPU, where batches are drawn."""
        return copy.deepcopy(self.model).cpu()

    def figures(self, batch: BucketBatch) -> dict[str, float | Tensor]:
        return {"chance_loss": AutoregressiveObjective(self.model).chance(batch)}

    def evaluate(self, model: AutoregressivePrior) -> dict[str, float]:
        """Add to the other figures the mean log-likelihood of validation pairs, in nats per embedding."""
        validation = self.inputs.validation
        rows = torch.arange(len(validation))[: self.run.likelihood_on]
        captions = validation.data.draw(rows, torch.Generator().manual_seed(0))
        text = validation.text_features(captions).to(self.device)
        likelihood = model.log_likelihood(validation.embeddings[rows].to(self.device), text)
        return super().evaluate(model) | {"log_likelihood": likelihood.mean().item()}

    def validation_loss(
        self, model: AutoregressivePrior, rows: Tensor, caption_ids: Tensor, generator: torch.Generator
    ) -> float:
        images = self.inputs.validation
        text = images.text_features(caption_ids)
        batch = BucketBatch(self.find_buckets(images.embeddings[rows], text), text, images.data.pair_weights[rows])
        return AutoregressiveObjective(model)(batch.to(self.device)).item()
