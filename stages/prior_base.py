"""Shared by the trainings of all kinds of prior: options, the captions of a batch, validation by drawing, preview."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from data.variety import choose_varied
from stages.batches import StepDraw
from stages.evaluation.metrics import same_group_cosine
from stages.inputs import Inputs
from stages.prior_figures import PHRASINGS, pair_cosines, pair_figures
from stages.run_options import FrozenCLIPRun, Shapes, guidance_conflicts
from unclip.clip import TextFeatures
from unclip.fields import bounded
from unclip.grids import captioned_grid
from unclip.settings import PriorSettings


@dataclass(frozen=True)
class BasePriorRun(FrozenCLIPRun):
    """Options of every kind. A subclass adds `model`, the model's config, whose `network` takes sizes from CLIP."""

    drop: float = bounded(0.1, 0, 0.99)
    """Share of the captions that are replaced by the learned null, for guidance."""
    hide_tokens: bool = True
    """Hide a random share of each caption's tokens, so that no combination of words is learned as a whole."""
    evaluate_on: int = bounded(1000, PHRASINGS, 10**7)
    """Validation images that the figures are taken on."""
    sampling: PriorSettings = bounded(PriorSettings(spacing="karras"), affects_weights=False)
    """How the trained prior is sampled; noted in the pipeline's model_index.json."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from guidance_conflicts(self, "drop")


class BasePriorStage(ABC):
    """A prior's training but for its batches, its objective, and the statistics of the data that it stores.

    A subclass names the model's class, and defines `objective`, `batch` and `validation_loss`.
    """

    name = "prior"
    best_is = ("loss", "lowest")  # not the cosine: it is highest for a prior that draws the mean of all images
    model_class: ClassVar[Any]
    objective: nn.Module

    def __init__(self, run: Any, model: nn.Module, inputs: Inputs, device: torch.device):
        self.run = run
        self.model: Any = model
        self.inputs = inputs
        self.device = device
        self.size = len(inputs.train)
        self.sampling: PriorSettings = run.sampling

    @classmethod
    def build_model(cls, run: Any, shapes: Shapes) -> Any:
        from_clip = ("embed_dim", "text_width", "context")
        sizes = {name: getattr(shapes, name) for name in from_clip if hasattr(run.model.network, name)}
        network = replace(run.model.network, **sizes)
        return cls.model_class(replace(run.model, network=network, num_classes=shapes.num_classes))

    def fit_buffers(self) -> None:
        """Fit the reranker to the class captions, and all that `fit_statistics` adds."""
        self.model.reranker.fit(self.inputs.class_embeddings, self.inputs.logit_scale)
        images = self.inputs.train
        caption_ids = images.data.draw(torch.arange(len(images)), torch.Generator().manual_seed(self.run.train.seed))
        self.fit_statistics(images.embeddings, images.text_embeddings[caption_ids])

    def fit_statistics(self, images: Tensor, texts: Tensor) -> None:
        """Fit the scaling of the embeddings and their linear prediction, to the training images' pairs (N, D)."""
        self.fit_scaler(images)
        self.model.network.regression.fit(texts, self.model.scaler.scale(images))

    def fit_scaler(self, images: Tensor) -> None:
        """Fit the scaling of the embeddings to those of the training images (N, D)."""
        self.model.scaler.fit(images)

    def draw_captions(self, draw: StepDraw) -> Tensor:
        """A caption id for each of this rank's examples."""
        return draw.share(draw.examples(self.inputs.train).data.draw(draw.rows, draw.generator))

    def read_captions(self, caption_ids: Tensor, draw: StepDraw) -> TextFeatures:
        """Their text as the prior is trained on it: some dropped, of the others some tokens hidden."""
        dropped = torch.rand(len(draw.rows), generator=draw.generator) < self.run.drop
        hidden_share = torch.rand(len(draw.rows), 1, generator=draw.generator)
        text = draw.examples(self.inputs.train).text_features(caption_ids).drop(draw.share(dropped))
        if self.run.hide_tokens:
            token_draws = torch.rand(len(draw.rows), self.inputs.shapes.context, generator=draw.generator)
            text = hide_tokens(text, draw.share(hidden_share), draw.share(token_draws))
        return text

    def pair_weights(self, text: TextFeatures, draw: StepDraw) -> Tensor:
        """The weight in the loss (b,) of each of this rank's examples: see `CaptionedImages.pair_weights`.

        Dropped captions weigh alike, as the null stands for all images.
        """
        weights = draw.examples(self.inputs.train).data.pair_weights
        return weights[draw.share(draw.rows)].masked_fill(text.empty, 1)

    @abstractmethod
    def validation_loss(self, model: Any, rows: Tensor, caption_ids: Tensor, generator: torch.Generator) -> float:
        """The loss on validation images and a caption of each, of which nothing is dropped or hidden."""

    def evaluate(self, model: Any) -> dict[str, float]:
        """The loss on validation pairs, with the same random numbers at every call, and `pair_figures` of them.

        Figures that are not known for this data, as where no two images share a caption, are left out.
        """
        validation = self.inputs.validation
        rows = torch.arange(len(validation))[: self.run.evaluate_on]
        generator = torch.Generator().manual_seed(0)
        loss = self.validation_loss(model, rows, validation.data.draw(rows, generator), generator)
        figures = pair_figures(pair_cosines(model, validation, len(rows), replace(self.sampling, num_candidates=1)))
        return {name: value for name, value in (figures | {"loss": loss}).items() if not math.isnan(value)}

    def preview(self, model: Any) -> Image.Image:
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


def weighted_error(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The mean over rows (B, D) of the squared error, each row with its weight (B,)."""
    return (weights * (predicted - target).square().mean(dim=1)).mean()


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
