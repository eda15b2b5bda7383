"""Train CLIP from scratch on captioned images."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.augmentation import random_offsets, shift_images
from data.dataset import CaptionedImages
from data.variety import choose_varied
from stages import runtime
from stages.batches import StepDraw
from stages.evaluation.metrics import recall_at_k
from stages.inputs import CLIPInputs
from stages.run_options import PartRun, Shapes
from unclip.clip import CLIP, CLIPConfig, Preprocess, VisionConfig
from unclip.clip.loss import chance_loss, contrastive_loss
from unclip.errors import UserError, quantity
from unclip.fields import bounded
from unclip.grids import captioned_grid
from unclip.tensor_batch import TensorBatch

PHRASINGS = 4
CAPTION_ROUNDINGS = 16
"""Numbers of distinct captions that a batch may have where their number is rounded up."""


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
class CLIPRun(PartRun):
    kind: str = bounded("transformer", affects_weights=False)
    """Kind of the CLIP, of those in unclip/registry.py."""
    vocab_size: int = bounded(1024, 258, 2**20)
    """Largest vocabulary of the tokenizer, which is trained on the captions."""
    model: CLIPConfig = bounded(CLIPConfig(), affects_weights=False)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self):
        if self.train.batch_size < 2:
            raise UserError("--train.batch-size must be at least 2, not 1: CLIP compares the images of a batch")


@dataclass(frozen=True)
class CLIPBatch(TensorBatch):
    """A rank's images, and its share of the distinct captions, the last of which may stand there repeatedly."""

    images: Tensor
    """uint8 (b, C, H, W)."""
    caption_id: Tensor
    """(B,), which distinct caption each image has, of all ranks' images, the first rank's first."""
    token_ids: Tensor
    """A share of the distinct captions (u, L), tokenised."""
    patches: Tensor | None = None
    """(b, K), the patches that each image is seen by; None for all."""

    def split(self, parts: int) -> list["CLIPBatch"]:
        """The batch as it is, as all of it is contrasted; the objective takes it apart."""
        return [self]


class CLIPObjective(nn.Module):
    """The contrastive loss, over the images and captions of all ranks.

    With several parts only one part's activations are in memory at a time: all embeddings are first computed without
    keeping activations. Once the loss's gradient at the embeddings is known, each part is computed again (GradCache:
    Gao et al. 2021, arXiv 2101.06983).
    """

    def __init__(self, model: CLIP, preprocess: Preprocess, parts: int = 1):
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.parts = parts

    def forward(self, batch: CLIPBatch) -> Tensor:
        image = self._in_parts(self._encode_image, batch.images, batch.patches)
        text = self._in_parts(self.model.embed_text, batch.token_ids)
        return contrastive_loss(image, text, batch.caption_id, self.model.scale(), runtime.gather, runtime.rank())

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

    def __init__(self, run: CLIPRun, model: CLIP, inputs: CLIPInputs, device: torch.device):
        self.model = model
        self.train_data = inputs.train
        self.validation = inputs.validation
        self.best_is = ("accuracy" if inputs.validation.classes else "image_to_text_recall@1", "highest")
        self.tokenizer = inputs.tokenizer
        self.augment = run.augment
        self.device = device
        self.size = len(inputs.train)
        if run.augment.shift >= inputs.train.image_size:
            most = inputs.train.image_size - 1
            raise UserError(f"--augment.shift must be at most {most} for these images, not {run.augment.shift}")
        config = model.config
        self.token_ids = inputs.tokenizer.encode(inputs.train.captions, config.text.context)
        self.preprocess = Preprocess(config.vision.image_size, config.vision.channels, config.preprocess)
        self.objective = CLIPObjective(model, self.preprocess, run.train.accumulate)
        if runtime.is_main():
            _tell_patches(run.model.vision.patch_size, inputs.train.image_size, config.vision)

    @staticmethod
    def build_model(run: CLIPRun, shapes: Shapes) -> CLIP:
        patch_size = fitting_patch(run.model.vision.patch_size, shapes.image_size)
        image_size = -(-shapes.image_size // max(1, patch_size)) * patch_size  # the next multiple
        vision = replace(run.model.vision, image_size=image_size, channels=shapes.channels, patch_size=patch_size)
        text = replace(run.model.text, vocab_size=shapes.vocab_size, eos_id=shapes.eos_id)
        preprocess = run.model.preprocess
        if image_size != shapes.image_size:  # images keep their pixels, and are surrounded with black
            preprocess = replace(preprocess, resize_to=shapes.image_size)
        return CLIP(replace(run.model, vision=vision, text=text, preprocess=preprocess))

    def fit_buffers(self) -> None:
        """CLIP has no buffers that are fitted."""

    def batch(self, draw: StepDraw) -> CLIPBatch:
        data = draw.examples(self.train_data)
        count = len(draw.rows)
        images = data.images[draw.share(draw.rows)]
        if self.augment.shift:
            images = shift_images(images, draw.share(random_offsets(count, self.augment.shift, draw.generator)))
        if self.augment.flip:
            flip = draw.share(torch.rand(count, generator=draw.generator) < 0.5)
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        token_ids, caption_id = self._draw_captions(data, draw)
        patches = self._draw_patches(count, draw.generator)
        per_rank = draw.rounded(-(-len(token_ids) // draw.ranks), unit=-(-count // CAPTION_ROUNDINGS))
        own_captions = torch.arange(draw.rank * per_rank, (draw.rank + 1) * per_rank).clamp(max=len(token_ids) - 1)
        return CLIPBatch(
            images=images,
            caption_id=caption_id,
            token_ids=token_ids[own_captions],
            patches=None if patches is None else draw.share(patches),
        )

    def _draw_captions(self, data: CaptionedImages, draw: StepDraw) -> tuple[Tensor, Tensor]:
        """The distinct captions of all ranks' images (U, L), tokenised, and which each image has (B,)."""
        drawn = data.draw(draw.rows, draw.generator, one_phrasing=True)
        if draw.streamed is None:
            distinct, caption_id = drawn.unique(return_inverse=True)
            caption_id = torch.cat([caption_id[rank :: draw.ranks] for rank in range(draw.ranks)])
            token_ids = self.token_ids[distinct]
        else:  # no rank knows the captions of the others
            context = self.model.config.text.context
            encoded = self.tokenizer.encode(data.captions, context)[draw.share(drawn)]
            encoded = F.pad(encoded, (0, context - encoded.shape[1]), value=self.tokenizer.pad_id)
            token_ids, caption_id = runtime.gather_on_cpu(encoded).unique(dim=0, return_inverse=True)
        longest = int(self.model.text.mask(token_ids).sum(dim=1).max())
        return token_ids[:, : draw.rounded(longest, unit=8)], caption_id

    def _draw_patches(self, count: int, generator: torch.Generator) -> Tensor | None:
        total = len(self.model.vision.positions) - 1
        visible = self.augment.patches(total)
        if visible == total:
            return None
        return torch.rand(count, total, generator=generator).topk(visible).indices

    def figures(self, batch: CLIPBatch) -> dict[str, float | Tensor]:
        chance = chance_loss(len(batch.caption_id), int(batch.caption_id.max()) + 1)
        return {"chance_loss": chance, "logit_scale": self.model.logit_scale.detach().exp()}

    def evaluate(self, model: CLIP) -> dict[str, float]:
        """On the validation images: zero-shot accuracy from the plain captions, and recall@k over distinct captions."""
        images = self._embed(model, self.validation.images)
        figures = {}
        if self.validation.classes:
            text = self._encode(model, self.tokenizer.encode(self.validation.class_captions, model.config.text.context))
            right = (images @ text.T).argmax(dim=1) == self.validation.labels
            figures["accuracy"] = right.float().mean().item()
        token_ids = self.tokenizer.encode(self.validation.captions, model.config.text.context)
        recall = caption_recall(
            images, self.validation, lambda caption_ids: self._encode(model, token_ids[caption_ids])
        )
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

    def _encode(self, model: CLIP, token_ids: Tensor) -> Tensor:
        return torch.cat([model.encode_text(part.to(self.device))[0].cpu() for part in token_ids.split(500)])


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

    There are at least four patches. Where nothing between half and twice the wanted size divides, it stays, and images
    are made larger.
    """
    if wanted < 1:  # the model refuses it
        return wanted
    choices = [n for n in range(-(-wanted // 2), 2 * wanted + 1) if image_size % n == 0 and 2 * n <= image_size]
    return min(choices, key=lambda n: abs(math.log(n / wanted)), default=min(wanted, image_size))


def _tell_patches(wanted: int, image_size: int, vision: VisionConfig) -> None:
    """Print a line if the images of the data do not suit the wanted patches."""
    if vision.patch_size != wanted:
        print(f"clip: patches of {quantity(vision.patch_size, 'pixel')}, as {wanted} does not divide {image_size}")
    if vision.image_size != image_size:
        size = f"{vision.image_size}, a multiple of {vision.patch_size}"
        print(f"clip: images of {image_size} pixels are surrounded with black up to {size}")
