"""CLIP (Radford et al. 2021, arXiv 2103.00020): two towers and one embedding space."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.clip.preprocess_config import PreprocessConfig
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
