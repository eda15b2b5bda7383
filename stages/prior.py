"""Train the diffusion prior: captions -> the frozen CLIP's image embeddings."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor, nn

from data.variety import choose_varied
from stages import loop, runtime
from stages.data_config import DataConfig
from stages.embed import EmbeddedImages
from stages.evaluation.metrics import distance_of_draws, same_group_cosine, share_of_gap
from stages.identity import settings
from stages.inputs import Inputs, open_inputs
from stages.memory import WIDTHS, check_fits
from unclip.clip import TextFeatures
from unclip.clip.pretrained import adopt
from unclip.devices import device_of
from unclip.fields import bounded
from unclip.grids import captioned_grid
from unclip.layers import at_least_float32
from unclip.prior import Prior, PriorConfig
from unclip.settings import PriorSettings
from unclip.store.checkpoint import Manifest
from unclip.tensor_batch import TensorBatch

PHRASINGS = 4


@dataclass(frozen=True)
class PriorRun:
    out: Path = bounded(Path("checkpoints/run"), affects_weights=False)
    """Folder of the pipeline, which holds a trained clip; the prior goes to its subfolder prior."""
    clip: str | None = bounded(None, affects_weights=False)
    """A pretrained CLIP to train on: a folder, a file, or its name on the Hugging Face Hub. It is copied into --out."""
    clip_revision: Annotated[str | None, tyro.conf.arg(name="clip.revision")] = bounded(None, affects_weights=False)
    """The Hub's branch, tag or commit of that CLIP."""
    preset: str = bounded("quick", affects_weights=False)
    """Defaults of all other options: tiny (tests), quick (a laptop), small (hours), base (a GPU), paper (a cluster)."""
    init_from: Path | None = bounded(None, affects_weights=False)
    """Start from the prior of the pipeline in this folder; shapes must be equal. Without it: at random."""
    drop: float = bounded(0.1, 0, 0.99)
    """Share of the captions that are replaced by the learned null, for guidance."""
    hide_tokens: bool = True
    """Hide a random share of each caption's tokens, so that no combination of words is learned as a whole."""
    evaluate_on: int = bounded(1000, PHRASINGS, 10**7)
    """Validation images that the figures are taken on."""
    sampling: PriorSettings = bounded(PriorSettings(), affects_weights=False)
    """How the trained prior is drawn from; noted in the pipeline's model_index.json."""
    data: DataConfig = field(default_factory=DataConfig)
    model: PriorConfig = bounded(PriorConfig(), affects_weights=False)
    train: loop.TrainConfig = field(default_factory=loop.TrainConfig)


@dataclass(frozen=True)
class PriorBatch(TensorBatch):
    embeddings: Tensor
    """Unit image embeddings (B, D)."""
    captions: TextFeatures
    t: Tensor
    """Times (B,)."""
    noise: Tensor
    """(B, D)."""


class PriorObjective(nn.Module):
    def __init__(self, model: Prior):
        super().__init__()
        self.model, self.diffusion = model, model.diffusion()

    def forward(self, batch: PriorBatch) -> Tensor:
        """Squared error on the clean, scaled embedding."""
        x0 = self.model.scaler.scale(batch.embeddings)
        noised, target = self.diffusion.training_pair(x0, batch.noise, batch.t)
        predicted = self.model.predict(noised, batch.t, batch.captions)
        return F.mse_loss(at_least_float32(predicted), target)

    def chance(self, batch: PriorBatch) -> Tensor:
        """The loss of a prior that answers the mean of all images to everything."""
        return self.model.scaler.scale(batch.embeddings).square().mean()


class PriorStage:
    """Gives the loop the squared error on the clean embedding, and the same and cosines on validation pairs."""

    name = "prior"
    best_is = ("loss", "lowest")  # not the cosine: it is highest for a prior that draws the mean of all images

    def __init__(self, model: Prior, inputs: Inputs, run: PriorRun, device: torch.device):
        self.model, self.inputs, self.run, self.device = model, inputs, run, device
        self.objective = PriorObjective(model)
        self.diffusion = model.diffusion()
        self.size = len(inputs.train)
        steps = min(run.sampling.steps, model.config.timesteps)
        self.sampling = replace(run.sampling, steps=steps)

    def batch(self, rows: Tensor, generator: torch.Generator) -> PriorBatch:
        batch = self._examples(self.inputs.train, rows, generator)
        captions = batch.captions.drop(torch.rand(len(rows), generator=generator) < self.run.drop)
        return replace(batch, captions=hide_tokens(captions, generator) if self.run.hide_tokens else captions)

    def _examples(self, images: EmbeddedImages, rows: Tensor, generator: torch.Generator) -> PriorBatch:
        """Images with a caption each, nothing of it dropped, and the noise to train with."""
        embeddings = images.embeddings[rows]
        return PriorBatch(
            embeddings=embeddings,
            captions=images.captions(images.data.draw(rows, generator)),
            t=self.diffusion.draw_times(len(rows), generator),
            noise=torch.randn(embeddings.shape, generator=generator),
        )

    def figures(self, batch: PriorBatch) -> dict[str, float | Tensor]:
        return {"chance_loss": self.objective.chance(batch)}

    def evaluate(self, model: Prior) -> dict[str, float]:
        """The loss on validation pairs, at the same times and noise at every call, and `pair_figures` of them.

        What is not known of this data, as where no two images share a caption, is left out.
        """
        validation = self.inputs.validation
        rows = torch.arange(len(validation))[: self.run.evaluate_on]
        batch = self._examples(validation, rows, torch.Generator().manual_seed(0))
        loss = PriorObjective(model)(batch.to(self.device)).item()
        figures = pair_figures(pair_cosines(model, validation, len(rows), replace(self.sampling, num_candidates=1)))
        figures |= {"loss": loss, "embedding_std": model.scaler.std.mean().item()}
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def preview(self, model: Prior) -> Image.Image:
        """For ten varied captions four of their images, and the training images nearest to eight draws of the prior.

        Under each caption stand the mean cosines between its images and between the draws. Where the prior has
        collapsed, the draws' is near 1, and its eight images are the same one.
        """
        validation, train = self.inputs.validation, self.inputs.train
        ids = validation.data.draw(torch.arange(len(validation)), torch.Generator().manual_seed(0), one_phrasing=True)
        number = {validation.data.captions[i]: i for i in ids.unique().tolist()}
        blank = torch.full_like(validation.data.images[0], 255)
        rows, notes = [], []
        for caption in choose_varied(list(number), 10):
            own = (ids == number[caption]).nonzero()[:, 0]
            encoded = validation.captions(torch.tensor([number[caption]] * 8)).to(self.device)
            drawn = model.draw(encoded, range(8), self.sampling).cpu()
            nearest = (drawn @ train.embeddings.T).argmax(dim=1)
            shown = [*validation.data.images[own[:4]], *[blank] * (5 - len(own[:4])), *train.data.images[nearest]]
            rows.append((caption, torch.stack(shown).permute(0, 2, 3, 1).numpy()))
            notes.append(f"images {_alike(validation.embeddings[own])}, draws {_alike(drawn)}")
        headings = {0: "its images; numbers: mean cosine of any two", 5: "training images nearest to eight draws"}
        return captioned_grid(rows, columns=[headings.get(i, "") for i in range(13)], notes=notes)


def _alike(embeddings: Tensor) -> str:
    """The mean cosine of any two of unit embeddings (N, D); "-" of a single one."""
    cosines = same_group_cosine(embeddings, torch.zeros(len(embeddings), dtype=torch.long))
    return f"{cosines.mean():.2f}" if len(embeddings) > 1 else "-"


def hide_tokens(captions: TextFeatures, generator: torch.Generator) -> TextFeatures:
    """Hide each token of a caption with a probability that is drawn, uniformly, for the caption.

    The prior so sees parts of captions, and leans less on whole ones. CLIP's encodings of the tokens that are left
    still tell something of those before them. The first token stays, as under the causal mask it has no other to look
    at; the text embedding, which stands for the whole caption, is not a token.
    """
    keep = torch.rand(captions.mask.shape, generator=generator) >= torch.rand(len(captions), 1, generator=generator)
    keep[:, 0] = True
    return replace(captions, mask=captions.mask & keep)


def pair_cosines(model: nn.Module, images: EmbeddedImages, count: int, settings: PriorSettings) -> dict[str, Tensor]:
    """Cosines (count,) to the true image embedding of each of a data set's first `count` images, side by side.

    "sample", of what the prior draws for the image's caption, should be near "ceiling", of the other images of that
    caption (NaN where there are none), and so should be "redrawn", of the sample and a second one, which near 1 means
    that all draws are the same. "text", of the caption's text embedding, needs no prior; "unrelated", of the sample and
    the image of another caption (NaN where it is the same), should be far below. The images are shared among a few
    phrasings; within one, captions of one meaning are one string, so that another caption has another meaning.
    """
    cosines: dict[str, list[Tensor]] = {name: [] for name in ("sample", "redrawn", "text", "unrelated", "ceiling")}
    for phrasing, rows in enumerate(torch.arange(len(images))[:count].chunk(PHRASINGS)):
        generator = torch.Generator().manual_seed(phrasing)
        groups = images.data.draw(torch.arange(len(images)), generator, one_phrasing=True)
        captions = images.captions(groups[rows])
        sample, other = (
            model.draw(captions.to(device_of(model)), (rows + first).tolist(), settings).cpu()
            for first in (0, len(images))
        )
        true, same = images.embeddings[rows], groups[rows] == groups[rows].roll(1)
        cosines["sample"].append((sample * true).sum(dim=1))
        cosines["redrawn"].append((sample * other).sum(dim=1))
        cosines["text"].append((captions.embedding * true).sum(dim=1))
        cosines["unrelated"].append((sample * true.roll(1, dims=0)).sum(dim=1).masked_fill(same, torch.nan))
        cosines["ceiling"].append(same_group_cosine(images.embeddings, groups)[rows])
    return {name: torch.cat(values) for name, values in cosines.items()}


def pair_figures(cosines: dict[str, Tensor]) -> dict[str, float]:
    """What `pair_cosines` tells of a prior: means, the share of the gap closed, and distances to the true images.

    The gap from text to ceiling is nearly none where captions say nearly all, and its share then NaN; the distance of
    the draws, beside 1 for collapse and that of the text embedding taken as a draw, tells there too.
    """
    sample, text, ceiling = cosines["sample"], cosines["text"], cosines["ceiling"]
    return {
        **{f"cosine_{name}": values.nanmean().item() for name, values in cosines.items()},
        "gap_closed": share_of_gap(sample, text, ceiling)["value"],
        "distance_sample": distance_of_draws(sample, cosines["redrawn"], ceiling),
        "distance_text": distance_of_draws(text, torch.ones_like(text), ceiling),
    }


def fit(model: Prior, inputs: Inputs, seed: int) -> None:
    """Take the statistics of the embeddings that are diffused, the linear guess of them from captions' texts, and the
    classes' captions."""
    images = inputs.train
    model.choice.fit(inputs.rivals, inputs.logit_scale)
    model.scaler.fit(images.embeddings)
    captions = images.data.draw(torch.arange(len(images)), torch.Generator().manual_seed(seed))
    model.regression.fit(images.text_embeddings[captions], model.scaler.scale(images.embeddings))


def train(run: PriorRun) -> Manifest:
    """Train a prior on the CLIP in run.out. Returns the manifest of the trained prior."""
    device = runtime.start(run.train.device)
    check_fits(lambda: Prior(replace(run.model, **WIDTHS)), device, shared=run.train.shard)
    if run.clip:
        with runtime.main_first():
            adopt(run.clip, run.out, run.clip_revision)
    inputs = open_inputs(run.out, run.data, device)
    clip = inputs.clip
    shapes = {"embed_dim": clip.embed_dim, "text_width": clip.text.width, "context": clip.text.context}
    shapes["rivals"] = len(inputs.rivals)
    with runtime.seeded(run.train.seed):
        model = Prior(replace(run.model, **shapes))
    start = inputs.start(model, run.init_from, "prior", lambda: fit(model, inputs, run.train.seed))
    manifest = inputs.manifest("prior", settings(run), asdict(run.sampling), start)
    files = {"captions.txt": some_captions(inputs.train.data.captions)}
    return loop.train(PriorStage(model, inputs, run, device), run.train, device, run.out, manifest, files)


def some_captions(captions: Sequence[str], count: int = 1000) -> str:
    """At most `count` captions, spread over all of them, one per line: for whoever looks into the pipeline later."""
    spread = np.unique(np.linspace(0, len(captions) - 1, min(count, len(captions))).round().astype(int))
    return "".join(f"{' '.join(captions[i].split())}\n" for i in spread)
