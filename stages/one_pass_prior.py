"""Train the one-pass prior: caption and noise -> the frozen CLIP's image embeddings."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stages.batches import StepDraw
from stages.inputs import Inputs
from stages.prior_base import BasePriorRun, BasePriorStage, weighted_error
from unclip.clip import TextFeatures
from unclip.fields import bounded
from unclip.layers import at_least_float32
from unclip.prior.one_pass_prior import OnePassPrior, OnePassPriorConfig
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class OnePassRun(BasePriorRun):
    kind: str = bounded("one_pass", affects_weights=False)
    """Kind of the prior, of those in unclip/registry.py."""
    contrast: float = bounded(0.2, 0, 1000)
    """Weight of the contrastive loss beside the squared error."""
    model: OnePassPriorConfig = bounded(OnePassPriorConfig(), affects_weights=False)


@dataclass(frozen=True)
class OnePassBatch(TensorBatch):
    embeddings: Tensor
    """Unit image embeddings (B, D)."""
    text: TextFeatures
    caption_ids: Tensor
    """(B,), equal for equal captions."""
    noise: Tensor
    """(B, D)."""
    weights: Tensor
    """Each pair's weight in the loss (B,)."""

    def split(self, parts: int) -> list["OnePassBatch"]:
        """The batch as it is: all of its predictions are contrasted with all of its captions."""
        return [self]


class OnePassObjective(nn.Module):
    def __init__(self, model: OnePassPrior, contrast: float, logit_scale: float):
        super().__init__()
        self.model = model
        self.contrast = contrast
        self.logit_scale = logit_scale

    def forward(self, batch: OnePassBatch) -> Tensor:
        """Patel et al. 2023, eq. 5: squared error to the image embedding, and contrast with the batch's captions.

        The error is that of scaled embeddings. Captions that were dropped are not contrasted.
        """
        predicted = at_least_float32(self.model.predict(batch.noise, batch.text))
        with torch.autocast(predicted.device.type, enabled=False):
            target = self.model.scaler.scale(batch.embeddings)
            drawn = self.model.scaler.unscale(predicted)
        projection = weighted_error(predicted, target, batch.weights)
        weights = batch.weights * ~batch.text.empty
        cosines = drawn @ batch.text.embedding.T
        contrast = caption_contrast(self.logit_scale * cosines, batch.caption_ids)
        return projection + self.contrast * (weights * contrast).mean()


def caption_contrast(logits: Tensor, caption_ids: Tensor) -> Tensor:
    """-ln of the share (B,) that a row's own caption has in the softmax over the captions of a batch (B, B).

    Equal captions are never each other's negatives.
    """
    is_other = caption_ids[:, None] != caption_ids
    return logits.logsumexp(dim=1) - logits.masked_fill(is_other, -torch.inf).logsumexp(dim=1)


class OnePassStage(BasePriorStage):
    """Gives the loop the one-pass loss on embeddings, and the same on validation pairs."""

    model_class: ClassVar[type] = OnePassPrior

    def __init__(self, run: OnePassRun, model: OnePassPrior, inputs: Inputs, device: torch.device):
        super().__init__(run, model, inputs, device)
        self.objective = OnePassObjective(model, run.contrast, inputs.logit_scale)

    def batch(self, draw: StepDraw) -> OnePassBatch:
        caption_ids = self.draw_captions(draw)
        text = self.read_captions(caption_ids, draw)
        embeddings = draw.examples(self.inputs.train).embeddings[draw.share(draw.rows)]
        noise = draw.normal(embeddings.shape[1])
        return OnePassBatch(embeddings, text, caption_ids, noise, self.pair_weights(text, draw))

    def figures(self, batch: OnePassBatch) -> dict[str, float | Tensor]:
        return {}

    def validation_loss(
        self, model: OnePassPrior, rows: Tensor, caption_ids: Tensor, generator: torch.Generator
    ) -> float:
        images = self.inputs.validation
        embeddings = images.embeddings[rows]
        noise = torch.randn(embeddings.shape, generator=generator)
        weights = images.data.pair_weights[rows]
        batch = OnePassBatch(embeddings, images.text_features(caption_ids), caption_ids, noise, weights)
        objective = OnePassObjective(model, self.run.contrast, self.inputs.logit_scale)
        return objective(batch.to(self.device)).item()
