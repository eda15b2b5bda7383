"""Train the diffusion prior: captions -> the frozen CLIP's image embeddings."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from data.variety import choose_varied
from stages.batches import StepDraw
from stages.embed import EmbeddedImages
from stages.evaluation.metrics import same_group_cosine
from stages.inputs import Inputs
from stages.prior_figures import PHRASINGS, pair_cosines, pair_figures
from stages.run_options import FrozenCLIPRun, Shapes
from unclip.clip import TextFeatures
from unclip.diffusion.prediction import noised_pair, training_target
from unclip.diffusion.process import NoiseLevels
from unclip.fields import bounded
from unclip.grids import captioned_grid
from unclip.layers import at_least_float32
from unclip.prior import DiffusionPrior, DiffusionPriorConfig
from unclip.settings import PriorSettings
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class PriorRun(FrozenCLIPRun):
    kind: str = bounded("diffusion", affects_weights=False)
    """Kind of the prior, of those in unclip/registry.py."""
    drop: float = bounded(0.1, 0, 0.99)
    """Share of the captions that are replaced by the learned null, for guidance."""
    hide_tokens: bool = True
    """Hide a random share of each caption's tokens, so that no combination of words is learned as a whole."""
    evaluate_on: int = bounded(1000, PHRASINGS, 10**7)
    """Validation images that the figures are taken on."""
    sampling: PriorSettings = bounded(PriorSettings(), affects_weights=False)
    """How the trained prior is sampled; noted in the pipeline's model_index.json."""
    model: DiffusionPriorConfig = bounded(DiffusionPriorConfig(), affects_weights=False)


@dataclass(frozen=True)
class PriorBatch(TensorBatch):
    embeddings: Tensor
    """Unit image embeddings (B, D)."""
    text: TextFeatures
    levels: NoiseLevels
    noise: Tensor
    """(B, D)."""


class PriorObjective(nn.Module):
    def __init__(self, model: DiffusionPrior):
        super().__init__()
        self.model = model

    def forward(self, batch: PriorBatch) -> Tensor:
        """Squared error on the target, for the residual of the scaled embedding to its linear prediction."""
        network = self.model.network
        text = batch.text
        with torch.autocast(batch.noise.device.type, enabled=False):
            residual = self.model.scaler.scale(batch.embeddings) - network.centre(text.embedding, text.empty)
        noised, target = noised_pair(self.model.config.diffusion.prediction, residual, batch.noise, batch.levels)
        predicted = network.forward_with_text(
            noised, batch.levels.time, text.embedding, text.tokens, text.mask, text.empty
        )
        return F.mse_loss(at_least_float32(predicted), target)

    def chance(self, batch: PriorBatch) -> Tensor:
        """The loss of a prior that answers the mean of all images to everything."""
        x0 = self.model.scaler.scale(batch.embeddings)
        levels = batch.levels
        prediction = self.model.config.diffusion.prediction
        return (
            training_target(prediction, x0, batch.noise, levels.alpha[:, None], levels.sigma[:, None]).square().mean()
        )


class PriorStage:
    """Gives the loop the diffusion loss on embeddings, and the same and cosines on validation pairs."""

    name = "prior"
    best_is = ("loss", "lowest")  # not the cosine: it is highest for a prior that draws the mean of all images

    def __init__(self, run: PriorRun, model: DiffusionPrior, inputs: Inputs, device: torch.device):
        self.run = run
        self.model = model
        self.inputs = inputs
        self.device = device
        self.objective = PriorObjective(model)
        self.process = model.process
        self.size = len(inputs.train)
        steps = min(run.sampling.steps, model.config.diffusion.timesteps)
        self.sampling = replace(run.sampling, steps=steps)

    @staticmethod
    def build_model(run: PriorRun, shapes: Shapes) -> DiffusionPrior:
        network = replace(
            run.model.network, embed_dim=shapes.embed_dim, text_width=shapes.text_width, context=shapes.context
        )
        return DiffusionPrior(replace(run.model, network=network, num_classes=shapes.num_classes))

    def fit_buffers(self) -> None:
        """Fit the scaling of the embeddings, their linear prediction from texts, and the reranker's class captions."""
        images = self.inputs.train
        model = self.model
        model.reranker.fit(self.inputs.class_embeddings, self.inputs.logit_scale)
        model.scaler.fit(images.embeddings)
        caption_ids = images.data.draw(torch.arange(len(images)), torch.Generator().manual_seed(self.run.train.seed))
        model.network.regression.fit(images.text_embeddings[caption_ids], model.scaler.scale(images.embeddings))

    def batch(self, draw: StepDraw) -> PriorBatch:
        images = self.inputs.train
        caption_ids = draw.share(images.data.draw(draw.rows, draw.generator))
        levels = draw.share(self.process.draw_levels(len(draw.rows), draw.generator))
        dropped = torch.rand(len(draw.rows), generator=draw.generator) < self.run.drop
        hidden_share = torch.rand(len(draw.rows), 1, generator=draw.generator)
        text = images.text_features(caption_ids).drop(draw.share(dropped))
        if self.run.hide_tokens:
            text = hide_tokens(text, draw.share(hidden_share), draw.share(self._token_draws(draw)))
        embeddings = images.embeddings[draw.share(draw.rows)]
        return PriorBatch(embeddings, text, levels, draw.normal(embeddings.shape[1]))

    def _token_draws(self, draw: StepDraw) -> Tensor:
        """A uniform number for each token that a caption may have, (B, context)."""
        return torch.rand(len(draw.rows), self.inputs.shapes.context, generator=draw.generator)

    def figures(self, batch: PriorBatch) -> dict[str, float | Tensor]:
        return {"chance_loss": self.objective.chance(batch)}

    def evaluate(self, model: DiffusionPrior) -> dict[str, float]:
        """The loss on validation pairs, at the same times and noise at every call, and `pair_figures` of them.

        Figures that are not known for this data, as where no two images share a caption, are left out.
        """
        validation = self.inputs.validation
        rows = torch.arange(len(validation))[: self.run.evaluate_on]
        loss = PriorObjective(model)(self._validation_batch(validation, rows).to(self.device)).item()
        figures = pair_figures(pair_cosines(model, validation, len(rows), replace(self.sampling, num_candidates=1)))
        figures |= {"loss": loss, "embedding_std": model.scaler.std.mean().item()}
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def _validation_batch(self, images: EmbeddedImages, rows: Tensor) -> PriorBatch:
        """Images with a caption each, of which nothing is dropped."""
        generator = torch.Generator().manual_seed(0)
        embeddings = images.embeddings[rows]
        return PriorBatch(
            embeddings=embeddings,
            text=images.text_features(images.data.draw(rows, generator)),
            levels=self.process.draw_levels(len(rows), generator),
            noise=torch.randn(embeddings.shape, generator=generator),
        )

    def preview(self, model: DiffusionPrior) -> Image.Image:
        """For ten varied captions four of their images, and the training images nearest to eight samples of the prior.

        Under each caption stand the mean cosines between its images and between the samples. Where the prior has
        collapsed, the samples' is near 1, and its eight images are the same one.
        """
        train = self.inputs.train
        validation = self.inputs.validation
        every_row = torch.arange(len(validation))
        caption_ids = validation.data.draw(every_row, torch.Generator().manual_seed(0), one_phrasing=True)
        id_of = {validation.data.captions[i]: i for i in caption_ids.unique().tolist()}
        blank = torch.full_like(validation.data.images[0], 255)
        rows = []
        notes = []
        for caption in choose_varied(list(id_of), 10):
            real_rows = (caption_ids == id_of[caption]).nonzero()[:, 0]
            text = validation.text_features(torch.tensor([id_of[caption]] * 8)).to(self.device)
            samples = model.draw_embeddings(text, range(8), self.sampling).cpu()
            nearest = (samples @ train.embeddings.T).argmax(dim=1)
            real = validation.data.images[real_rows[:4]]
            pictures = [*real, *[blank] * (5 - len(real)), *train.data.images[nearest]]
            rows.append((caption, torch.stack(pictures).permute(0, 2, 3, 1).numpy()))
            notes.append(f"images {mean_cosine(validation.embeddings[real_rows])}, samples {mean_cosine(samples)}")
        headings = {0: "its images; numbers: mean cosine of any two", 5: "training images nearest to eight samples"}
        return captioned_grid(rows, columns=[headings.get(i, "") for i in range(13)], notes=notes)


def mean_cosine(embeddings: Tensor) -> str:
    """The mean cosine of any two of unit embeddings (N, D), as text; "-" for a single one."""
    cosines = same_group_cosine(embeddings, torch.zeros(len(embeddings), dtype=torch.long))
    return f"{cosines.mean():.2f}" if len(embeddings) > 1 else "-"


def hide_tokens(text: TextFeatures, hidden_share: Tensor, draws: Tensor) -> TextFeatures:
    """Hide each token of a caption with a probability that is the caption's own, hidden_share (B, 1).

    The prior so sees parts of captions and relies less on whole ones. CLIP's features of the tokens that are left still
    tell something of those before them. The first token stays, as under the causal mask it has no other to attend to.
    The text embedding, which stands for the whole caption, is not a token.

    Args:
        draws: uniform numbers (B, at least L).
    """
    keep = draws[:, : text.mask.shape[1]] >= hidden_share
    keep[:, 0] = True
    return replace(text, mask=text.mask & keep)
