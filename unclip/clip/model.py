"""CLIP (Radford et al. 2021, arXiv 2103.00020): two towers, one embedding space, and the contrastive loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.clip.preprocess import PreprocessConfig
from unclip.clip.text import TextConfig, TextTransformer
from unclip.clip.vision import VisionConfig, VisionTransformer
from unclip.fields import bounded, check, from_data
from unclip.layers import at_least_float32


@dataclass(frozen=True)
class CLIPConfig:
    embed_dim: int = bounded(128, 2, 16_384)
    """Dimension of the shared embedding space."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    preprocess: PreprocessConfig = from_data(PreprocessConfig())
    """What the image tower expects of its images; a pretrained CLIP brings its own."""


class CLIP(nn.Module):
    config_class = CLIPConfig
    max_logit_scale = math.log(100)

    def __init__(self, config: CLIPConfig):
        super().__init__()
        check(config)
        self.config = config
        self.vision = VisionTransformer(config.vision, config.embed_dim)
        self.text = TextTransformer(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # (1,), as FSDP takes no scalars
        self.register_state_dict_post_hook(_scale_to_scalar)
        self.register_load_state_dict_pre_hook(_scale_to_vector)

    def encode_image(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Normalised images (B, C, H, W) -> unit embeddings (B, D); of each image's `patches` (B, K) alone if given."""
        return F.normalize(self.vision(images, patches), dim=-1)

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) -> unit embeddings (B, D) and the encodings of every token (B, L, W)."""
        embeddings, encodings = self.text(ids)
        return F.normalize(embeddings, dim=-1), encodings

    def embed_text(self, ids: Tensor) -> Tensor:
        """The embeddings of `encode_text` alone, for less."""
        return F.normalize(self.text.embed(ids), dim=-1)

    def scale(self) -> Tensor:
        """The factor (1,) on cosine similarities, at most 100 (Radford et al. 2021, section 2.5)."""
        self.keep_in_bounds()
        return self.logit_scale.exp()

    @torch.no_grad()
    def keep_in_bounds(self) -> None:
        """Clamp the parameter itself: the gradient of a clamped copy is zero above the bound, where it would stay.

        An optimiser does so too after each step, as of a sharded model `scale` sees a copy.
        """
        self.logit_scale.clamp_(max=self.max_logit_scale)


def _scale_to_scalar(clip: CLIP, tensors: dict[str, Tensor], prefix: str, _) -> None:
    """In files the logit scale is a scalar, as in those of other projects."""
    tensors[f"{prefix}logit_scale"] = tensors[f"{prefix}logit_scale"].reshape(())


def _scale_to_vector(clip: CLIP, tensors: dict[str, Tensor], prefix: str, *_) -> None:
    if (name := f"{prefix}logit_scale") in tensors:
        tensors[name] = tensors[name].reshape(1)


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    caption: Tensor,
    scale: Tensor | float,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    rank: int = 0,
) -> Tensor:
    """Symmetric cross-entropy over the *distinct* captions of a batch (InfoNCE, with several positives).

    Args:
        images: unit embeddings (B, D), one per image.
        texts: unit embeddings (U, D), one per distinct caption.
        caption: (B,) the row of `texts` that describes each image. A text that describes none counts for nothing.
        scale: factor on the cosines.
        gather: where several ranks share a batch, the rows of all of them, the first rank's first, differentiably.
            Each then gives b = B / ranks images, u = U / ranks texts, as many as the others, and all of `caption`; the
            mean of the ranks' losses is the batch's. A rank compares its own rows with all, so it holds b U + u B
            cosines, not B U.
        rank: which of them this is.

    An image has one right caption among U. A caption has as positives all images with it: the mean of their
    log-probabilities among B counts (Khosla et al. 2020, eq. 2). Equal strings are so never each other's negatives.
    """
    shares = gather(torch.cat([images, texts])).unflatten(0, (-1, len(images) + len(texts)))  # (ranks, b + u, D)
    all_images, all_texts = (x.flatten(0, 1) for x in shares.split([len(images), len(texts)], dim=1))  # (B, D), (U, D)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round logits near 100 to steps of a half
        of_images = scale * at_least_float32(images) @ at_least_float32(all_texts).T  # (b, U)
        of_texts = scale * at_least_float32(texts) @ at_least_float32(all_images).T  # (u, B)
    described = caption.new_zeros(len(all_texts)).index_fill(0, caption, 1)  # (U,)
    own = caption[rank * len(images) :][: len(images)]  # (b,)
    image_to_text = F.cross_entropy(of_images.masked_fill(described == 0, -torch.inf), own)
    rows = rank * len(texts) + torch.arange(len(texts), device=texts.device)  # (u,)
    positive = (rows[:, None] == caption).to(of_texts.dtype)  # (u, B)
    positive = positive / positive.sum(dim=1, keepdim=True).clamp(min=1)
    ranks = len(all_texts) / len(texts)
    text_to_image = -(positive * of_texts.log_softmax(dim=1)).sum() * ranks / described.sum()
    return (image_to_text + text_to_image) / 2


def chance_loss(images: int, captions: int | Tensor) -> Tensor:
    """`contrastive_loss` of embeddings that tell nothing."""
    return (torch.as_tensor(captions).log() + math.log(images)) / 2
