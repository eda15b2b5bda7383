"""CLIP (Radford et al. 2021, arXiv 2103.00020): two towers, one embedding space, and the contrastive loss."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.clip.preprocess import PreprocessConfig
from unclip.clip.text import TextConfig, TextTransformer
from unclip.clip.vision import VisionConfig, VisionTransformer
from unclip.fields import bounded, check, from_data


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
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> unit embeddings (B, D)."""
        return F.normalize(self.vision(images), dim=-1)

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) -> unit embeddings (B, D) and the encodings of every token (B, L, W)."""
        embeddings, encodings = self.text(ids)
        return F.normalize(embeddings, dim=-1), encodings

    def embed_text(self, ids: Tensor) -> Tensor:
        """The embeddings of `encode_text` alone, for less."""
        return F.normalize(self.text.embed(ids), dim=-1)

    def scale(self) -> Tensor:
        """The factor on cosine similarities, at most 100 (Radford et al. 2021, section 2.5).

        The parameter itself is clamped: the gradient of a clamped copy is zero above the bound, where it would stay.
        """
        with torch.no_grad():
            self.logit_scale.clamp_(max=self.max_logit_scale)
        return self.logit_scale.exp()


def contrastive_loss(images: Tensor, texts: Tensor, caption: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric cross-entropy over the *distinct* captions of a batch (InfoNCE, with several positives).

    Args:
        images: unit embeddings (B, D), one per image.
        texts: unit embeddings (U, D), one per distinct caption.
        caption: (B,) the row of `texts` that describes each image.
        scale: factor on the cosines.

    An image has one right caption among U. A caption has as positives all images with it: the mean of their
    log-probabilities among B counts (Khosla et al. 2020, eq. 2). Equal strings are so never each other's negatives.
    """
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round logits near 100 to steps of a half
        logits = scale * images.float() @ texts.float().T  # (B, U)
    image_to_text = F.cross_entropy(logits, caption)
    positive = F.one_hot(caption, len(texts)).to(logits.dtype)  # (B, U)
    positive = positive / positive.sum(dim=0, keepdim=True)  # every caption has an image: no column is empty
    text_to_image = -(positive * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return (image_to_text + text_to_image) / 2


def chance_loss(images: int, captions: int) -> float:
    """`contrastive_loss` of embeddings that tell nothing."""
    return (math.log(captions) + math.log(images)) / 2
