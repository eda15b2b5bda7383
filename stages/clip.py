"""Train CLIP from scratch on captioned images."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.dataset import CaptionedImages, random_flip, random_shift
from data.provenance import describe_source
from data.variety import choose_varied
from stages import loop, runtime
from stages.data_config import DataConfig
from stages.evaluation.metrics import recall_at_k
from stages.identity import settings
from stages.inputs import data_entry
from stages.memory import check_fits
from stages.state import start_from
from unclip.clip import CLIP, CLIPConfig, Preprocess, Tokenizer
from unclip.clip.loss import chance_loss, contrastive_loss
from unclip.clip.pretrained import load_bundle
from unclip.fields import bounded
from unclip.grids import captioned_grid
from unclip.store.checkpoint import Manifest, read_manifest, sha256
from unclip.store.hub import find_pipeline
from unclip.tensor_batch import TensorBatch

PHRASINGS = 4


@dataclass(frozen=True)
class AugmentConfig:
    flip: bool = True
    """Mirror half of the images."""
    shift: int = bounded(1, 0, 64)
    """Largest shift in pixels, either way."""
    keep_patches: float = bounded(1.0, 0.01, 1)
    """Share of its patches that an image is seen by, drawn anew at each step: faster, and less is learned by
    heart (Li et al. 2022, arXiv 2212.00794)."""

    def patches(self, total: int) -> int:
        """How many of so many patches are kept."""
        return max(1, round(self.keep_patches * total))


@dataclass(frozen=True)
class CLIPRun:
    out: Path = bounded(Path("checkpoints/run"), affects_weights=False)
    """Folder of the pipeline; CLIP goes to its subfolder clip."""
    preset: str = bounded("quick", affects_weights=False)
    """Defaults of all other options: tiny (tests), quick (a laptop), small (hours), base (a GPU), paper (a cluster)."""
    init_from: Path | None = bounded(None, affects_weights=False)
    """Start from the CLIP and tokenizer of the pipeline in this folder; shapes must be equal. Without it: at random."""
    vocab_size: int = bounded(1024, 258, 2**20)
    """Largest vocabulary of the tokenizer, which is trained on the captions."""
    data: DataConfig = field(default_factory=DataConfig)
    model: CLIPConfig = bounded(CLIPConfig(), affects_weights=False)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: loop.TrainConfig = field(default_factory=loop.TrainConfig)


@dataclass(frozen=True)
class CLIPBatch(TensorBatch):
    images: Tensor
    """uint8 (B, C, H, W)."""
    caption: Tensor
    """(B,), which row of `ids` each image's caption is."""
    ids: Tensor
    """The distinct captions (U, L), tokenised."""
    patches: Tensor | None = None
    """(B, K), the patches that each image is seen by; None for all."""

    def share(self, rank: int, ranks: int) -> "CLIPBatch":
        """One rank's images, and its share of the distinct captions, the last of which may stand there repeatedly.

        `caption` is that of all ranks' images, the first rank's first: each rank contrasts its own with all.
        """
        count = -(-len(self.ids) // ranks)
        rows = torch.arange(rank * count, (rank + 1) * count).clamp(max=len(self.ids) - 1)
        caption = torch.cat([self.caption[first::ranks] for first in range(ranks)])
        patches = None if self.patches is None else self.patches[rank::ranks]
        return CLIPBatch(self.images[rank::ranks], caption, self.ids[rows], patches)

    def split(self, parts: int) -> list["CLIPBatch"]:
        """The batch as it is, as all of it is contrasted; the objective takes it apart."""
        return [self]


class CLIPObjective(nn.Module):
    """The contrastive loss, over the images and captions of all ranks.

    In several parts the towers' activations of a part alone are kept: first all embeddings are computed without, and
    when the loss's gradient at them is known, part after part anew (Gao et al. 2021, arXiv 2101.06983).
    """

    def __init__(self, model: CLIP, preprocess: Preprocess, parts: int = 1):
        super().__init__()
        self.model, self.preprocess, self.parts = model, preprocess, parts

    def forward(self, batch: CLIPBatch) -> Tensor:
        image = self._in_parts(self._encode_image, batch.images, batch.patches)
        text = self._in_parts(self.model.embed_text, batch.ids)
        return contrastive_loss(image, text, batch.caption, self.model.scale(), runtime.gather, runtime.rank())

    def _encode_image(self, images: Tensor, patches: Tensor | None) -> Tensor:
        return self.model.encode_image(self.preprocess(images), patches)

    def _in_parts(self, encode: Callable[..., Tensor], *columns: Tensor | None) -> Tensor:
        if self.parts == 1:
            return encode(*columns)
        count = min(self.parts, len(columns[0]))
        parts = zip(*([None] * count if c is None else c.tensor_split(count) for c in columns), strict=True)
        return torch.cat([checkpoint(encode, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


class CLIPStage:
    """Gives the loop CLIP's contrastive loss and its validation figures."""

    name = "clip"

    def __init__(self, model: CLIP, tokenizer: Tokenizer, data: CaptionedImages, validation: CaptionedImages,
                 augment: AugmentConfig, device: torch.device, parts: int = 1):  # fmt: skip
        self.model, self.data, self.validation = model, data, validation
        self.best_is = ("accuracy" if validation.classes else "image_to_text_recall@1", "highest")
        self.tokenizer, self.augment, self.device = tokenizer, augment, device
        self.size = len(data)
        config = model.config
        self.ids = tokenizer.encode(data.captions, config.text.context)
        self.lengths = model.text.mask(self.ids).sum(dim=1)
        self.preprocess = Preprocess(config.vision.image_size, config.vision.channels, config.preprocess)
        self.objective = CLIPObjective(model, self.preprocess, parts)

    def batch(self, rows: Tensor, generator: torch.Generator) -> CLIPBatch:
        images = random_shift(self.data.images[rows], self.augment.shift, generator)
        if self.augment.flip:
            images = random_flip(images, generator)
        distinct, caption = self.data.draw(rows, generator, one_phrasing=True).unique(return_inverse=True)
        ids = self.ids[distinct, : self.lengths[distinct].max()]
        return CLIPBatch(images, caption, ids, self._patches(len(rows), generator))

    def _patches(self, count: int, generator: torch.Generator) -> Tensor | None:
        total = len(self.model.vision.positions) - 1
        kept = self.augment.patches(total)
        if kept == total:
            return None
        return torch.rand(count, total, generator=generator).topk(kept).indices

    def figures(self, batch: CLIPBatch) -> dict[str, float | Tensor]:
        chance = chance_loss(len(batch.caption), batch.caption.max() + 1)
        return {"chance_loss": chance, "logit_scale": self.model.logit_scale.detach().exp()}

    def evaluate(self, model: CLIP) -> dict[str, float]:
        """On the validation images: zero-shot accuracy from the plain captions, and recall@k over distinct captions."""
        images = self._embed(model, self.validation.images)
        figures = {}
        if self.validation.classes:
            text = self._encode(model, self.tokenizer.encode(self.validation.class_captions, model.config.text.context))
            right = (images @ text.T).argmax(dim=1) == self.validation.labels
            figures["accuracy"] = right.float().mean().item()
        ids = self.tokenizer.encode(self.validation.captions, model.config.text.context)
        recall = caption_recall(images, self.validation, lambda chosen: self._encode(model, ids[chosen]))
        return {**figures, **recall, "logit_scale": model.scale().item()}

    def preview(self, model: CLIP) -> Image.Image:
        """For each plain caption, or for ten varied ones, the validation images that match it best."""
        captions = self.validation.class_captions or choose_varied(self.validation.captions, 10)
        text = self._encode(model, self.tokenizer.encode(captions, model.config.text.context))
        best = (text @ self._embed(model, self.validation.images).T).topk(min(8, len(self.validation))).indices
        images = self.validation.images.permute(0, 2, 3, 1).numpy()
        rows = [(c, images[i]) for c, i in zip(captions, best, strict=True)]
        return captioned_grid(rows, columns=["validation images that match the caption best"])

    def _embed(self, model: CLIP, images: Tensor) -> Tensor:
        return torch.cat([model.encode_image(self.preprocess(p.to(self.device))).cpu() for p in images.split(500)])

    def _encode(self, model: CLIP, ids: Tensor) -> Tensor:
        return torch.cat([model.encode_text(part.to(self.device))[0].cpu() for part in ids.split(500)])


def caption_recall(images: Tensor, data: CaptionedImages, encode: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Recall@1 and @5 over the distinct captions of a data set, both ways, by unit image embeddings (N, D).

    `encode` gives the unit text embeddings (U, D) of caption ids (U,). Recall is the mean over a few phrasings, in each
    of which two captions of one meaning are the same string.
    """
    recall = Counter()
    for phrasing in range(PHRASINGS):
        drawn = data.draw(torch.arange(len(images)), torch.Generator().manual_seed(phrasing), one_phrasing=True)
        distinct, caption = drawn.unique(return_inverse=True)
        similarity = images @ encode(distinct).T  # (N, U)
        right = F.one_hot(caption, len(distinct)).bool()  # (N, U)
        for k in (1, 5):
            recall[f"image_to_text_recall@{k}"] += recall_at_k(similarity, right, k) / PHRASINGS
            recall[f"text_to_image_recall@{k}"] += recall_at_k(similarity.T, right.T, k) / PHRASINGS
    return dict(recall)


def fitting_patch(wanted: int, image_size: int) -> int:
    """The patch size nearest to the wanted one that divides the image size: presets are made for 28 pixels.

    There are at least four patches. Where nothing between half and twice the wanted size divides, it stays, and a rest
    of the last rows and columns is not seen.
    """
    if wanted < 1:  # the model refuses it
        return wanted
    choices = [n for n in range(-(-wanted // 2), 2 * wanted + 1) if image_size % n == 0 and 2 * n <= image_size]
    fitting = min(choices, key=lambda n: abs(math.log(n / wanted)), default=min(wanted, image_size))
    if fitting != wanted and runtime.is_main():
        print(f"clip: patches of {fitting} pixels, as {wanted} does not divide {image_size}")
    return fitting


def train(run: CLIPRun) -> Manifest:
    """Train the tokenizer and CLIP into run.out. Returns the manifest of the trained CLIP."""
    device = runtime.start(run.train.device)
    sized = replace(run.model, text=replace(run.model.text, vocab_size=run.vocab_size))
    check_fits(lambda: CLIP(sized), device, shared=run.train.shard)
    start = find_pipeline(run.init_from) if run.init_from else None
    data, validation = run.data.load_as(start or run.out, "train", "validation")
    if start:
        read_manifest(start / "clip")  # one of ours: another project's may lack a tokenizer
        tokenizer = load_bundle(start).tokenizer
    else:
        tokenizer = Tokenizer.train(data.captions, run.vocab_size)
    patch_size = fitting_patch(run.model.vision.patch_size, data.image_size)
    vision = replace(run.model.vision, image_size=data.image_size, channels=data.channels, patch_size=patch_size)
    text = replace(run.model.text, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.end_id)
    with runtime.seeded(run.train.seed):
        model = CLIP(replace(run.model, vision=vision, text=text))
    parents = {"tokenizer": sha256(tokenizer.to_json().encode()), **start_from(model, run.init_from, "clip")}
    source = describe_source(run.data, data.image_size)
    manifest = Manifest("clip", parents=parents, data=data_entry(data), source=source, training=settings(run))
    stage = CLIPStage(model, tokenizer, data, validation, run.augment, device, run.train.accumulate)
    return loop.train(stage, run.train, device, run.out, manifest, {"tokenizer.json": tokenizer.to_json()})
