"""Train the diffusion prior: captions -> the frozen CLIP's image embeddings."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor

from data.dataset import CaptionedImages
from stages import loop, runtime
from stages.data import DataConfig
from stages.embed import Embedded
from stages.frozen import Frozen, prepare
from unclip.checkpoint import Manifest
from unclip.clip.pretrained import adopt
from unclip.errors import UserError
from unclip.images import captioned_grid
from unclip.metrics import same_group_cosine
from unclip.prior import Prefix, Prior, PriorConfig, draw_embeddings
from unclip.settings import Sampling

PHRASINGS = 4


@dataclass(frozen=True)
class PriorRun:
    out: Path = Path("checkpoints/run")
    """Folder of the pipeline, which holds a trained clip; the prior goes to its subfolder prior."""
    clip: str | None = None
    """A pretrained CLIP to train on: a folder, a file, or its name on the Hugging Face Hub. It is copied into --out."""
    clip_revision: Annotated[str | None, tyro.conf.arg(name="clip.revision")] = None
    """The Hub's branch, tag or commit of that CLIP."""
    preset: str = "quick"
    """Defaults of all other options: tiny (tests), quick (minutes on a laptop), small (hours) or base (one GPU)."""
    init_from: Path | None = None
    """Start from the prior of the pipeline in this folder; shapes must be equal. Without it: at random."""
    drop: float = 0.1
    """Share of the captions that are replaced by the learned null, for guidance."""
    hide_tokens: bool = True
    """Hide a random share of each caption's tokens, so that no combination of words is learned as a whole."""
    evaluate_on: int = 1000
    """Validation images that the figures are taken on."""
    data: DataConfig = field(default_factory=DataConfig)
    model: PriorConfig = field(default_factory=PriorConfig)
    train: loop.TrainConfig = field(default_factory=loop.TrainConfig)

    def __post_init__(self):
        if not 0 <= self.drop <= 1 or self.evaluate_on < PHRASINGS:
            raise UserError(f"--drop must lie in 0 .. 1 and --evaluate-on be at least {PHRASINGS}")


class PriorStage:
    """Gives the loop the squared error on the clean embedding, and the same and cosines on validation pairs."""

    name = "prior"
    best_is = ("loss", "lowest")  # not the cosine: it is highest for a prior that draws the mean of all images

    def __init__(
        self, model: Prior, frozen: Frozen, drop: float, hide_tokens: bool, evaluate_on: int, device: torch.device
    ):
        self.model, self.frozen, self.drop, self.hide_tokens, self.device = model, frozen, drop, hide_tokens, device
        self.diffusion = model.diffusion()
        self.size = len(frozen.data)
        self.evaluate_on = evaluate_on
        self.sampling = Sampling(prior_steps=min(Sampling.prior_steps, model.config.timesteps))

    def loss(self, model: Prior, rows: Tensor) -> tuple[Tensor, dict[str, float | Tensor]]:
        text, encodings, mask = self.frozen.embedded.captions(self.frozen.data.draw(rows, False))
        if self.hide_tokens:
            mask = hide_tokens(mask)
        drop = (torch.rand(len(rows)) < self.drop).to(self.device)
        prefix = model.prefix(text, encodings, mask, drop)
        return self._error(model, self.frozen.embedded.images[rows.to(self.device)], prefix), {}

    def _error(self, model: Prior, embeddings: Tensor, prefix: Prefix) -> Tensor:
        """Squared error on clean image embeddings (B, D), given what the model has read of their captions."""
        t = self.diffusion.draw_timesteps(len(embeddings))
        x0 = model.scaler.scale(embeddings)
        noise = torch.randn(x0.shape).to(self.device)
        predicted = model(self.diffusion.add_noise(x0, noise, t), t.to(self.device), prefix)
        return F.mse_loss(predicted.float(), self.diffusion.target(x0, noise, t))

    def evaluate(self, model: Prior) -> dict[str, float]:
        """The loss on validation pairs, at the same times and noise at every call, and the means of `pair_cosines`."""
        validation, embedded = self.frozen.validation, self.frozen.embedded_validation
        torch.manual_seed(0)
        rows = torch.arange(len(validation))[: self.evaluate_on]
        prefix = model.prefix(*embedded.captions(validation.draw(rows, False)))
        loss = self._error(model, embedded.images[rows.to(self.device)], prefix).item()
        sampling = replace(self.sampling, draws=1, batch_size=500)
        cosines = pair_cosines(model, embedded, validation, self.evaluate_on, sampling)
        figures = {f"cosine_{name}": values.nanmean().item() for name, values in cosines.items()}
        return {"loss": loss, **figures, "embedding_std": model.scaler.std.mean().item()}

    def preview(self, model: Prior) -> Image.Image:
        """For some captions, the validation images whose embeddings are nearest to eight draws of the prior."""
        embedded, validation = self.frozen.embedded_validation, self.frozen.validation
        torch.manual_seed(0)
        count = min(10, len(validation))
        captions = validation.draw(torch.arange(count), False)
        rows = torch.arange(count, device=self.device).repeat_interleave(8)
        drawn = draw_embeddings(model, *embedded.captions(captions), rows, list(range(8)) * count, self.sampling)
        nearest = (drawn @ embedded.images.T).argmax(dim=1).view(count, 8).cpu()
        images = validation.images.permute(0, 2, 3, 1).numpy()
        return captioned_grid([(validation.captions[c], images[i]) for c, i in zip(captions, nearest, strict=True)])


def hide_tokens(mask: Tensor) -> Tensor:
    """Hide each token of a caption with a probability that is drawn, uniformly, for the caption.

    The prior so sees parts of captions, and leans less on whole ones. CLIP's encodings of the tokens that are left
    still tell something of those before them. The first token stays, as under the causal mask it has no other to look
    at; the text embedding, which stands for the whole caption, is no token.

    Args:
        mask: (B, L), False for padding.
    """
    share = torch.rand(len(mask), 1)
    keep = torch.rand(mask.shape) >= share
    keep[:, 0] = True
    return mask & keep.to(mask.device)


def pair_cosines(
    model: Prior, embedded: Embedded, data: CaptionedImages, count: int, sampling: Sampling
) -> dict[str, Tensor]:
    """Cosines (count,) to the true image embedding of each of a data set's first `count` images, side by side.

    "sample", of what the prior draws for the image's caption, should be well above "text", of the caption's text
    embedding, and near "ceiling", of the other images of that caption (NaN where there are none); "unrelated", of the
    sample and the image of another caption (NaN where it is the same), far below. The images are shared among a few
    phrasings; within one, captions of one meaning are one string, so that another caption has another meaning.
    """
    cosines: dict[str, list[Tensor]] = {name: [] for name in ("sample", "text", "unrelated", "ceiling")}
    images = embedded.images.cpu()
    for phrasing, rows in enumerate(torch.arange(len(data))[:count].chunk(PHRASINGS)):
        torch.manual_seed(phrasing)
        groups = data.draw(torch.arange(len(data)), True)
        text, encodings, mask = embedded.captions(groups[rows])
        own = torch.arange(len(rows), device=text.device)
        sample = draw_embeddings(model, text, encodings, mask, own, rows.tolist(), sampling).cpu()
        true, text = images[rows], text.cpu()
        same = groups[rows] == groups[rows].roll(1)
        cosines["sample"].append((sample * true).sum(dim=1))
        cosines["text"].append((text * true).sum(dim=1))
        cosines["unrelated"].append((sample * true.roll(1, dims=0)).sum(dim=1).masked_fill(same, torch.nan))
        cosines["ceiling"].append(same_group_cosine(images, groups)[rows])
    return {name: torch.cat(values) for name, values in cosines.items()}


def train(run: PriorRun) -> Manifest:
    """Train a prior on the CLIP in run.out. Returns the manifest of the trained prior."""
    device = runtime.start(run.train.device)
    if run.clip:
        with runtime.main_first():
            adopt(run.clip, run.out, run.clip_revision)
    frozen = prepare(run.out, run.data, device)
    clip = frozen.clip
    torch.manual_seed(run.train.seed)
    model = Prior(replace(run.model, embed_dim=clip.embed_dim, text_width=clip.text.width, context=clip.text.context))
    model.scaler.fit(frozen.embedded.images)
    captions = frozen.data.draw(torch.arange(len(frozen.data)), False)
    model.regression.fit(frozen.embedded.text[captions], model.scaler.scale(frozen.embedded.images))
    stage = PriorStage(model, frozen, run.drop, run.hide_tokens, run.evaluate_on, device)
    manifest = frozen.manifest("prior", loop.settings(run), loop.start_from(model, run.init_from, "prior"))
    return loop.train(stage, run.train, device, run.out, manifest)
