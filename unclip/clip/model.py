"""CLIP (Radford et al. 2021, arXiv 2103.00020): an image tower and a text tower with one embedding space."""

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
    """How images become the input of the image tower; a pretrained CLIP brings its own."""


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
        self.register_state_dict_post_hook(_logit_scale_to_scalar)
        self.register_load_state_dict_pre_hook(_logit_scale_to_vector)

    def encode_image(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Preprocessed images (B, C, H, W) -> unit embeddings (B, D).

        Given `patches` (B, K), the tower sees only those K patches of each image.
        """
        return F.normalize(self.vision(images, patches), dim=-1)

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) -> unit embeddings (B, D) and the features of every token (B, L, W)."""
        embeddings, tokens = self.text(token_ids)
        return F.normalize(embeddings, dim=-1), tokens

    def embed_text(self, token_ids: Tensor) -> Tensor:
        """Token ids (B, L) -> unit embeddings (B, D) alone, which costs less than `encode_text`."""
        return F.normalize(self.text.embed(token_ids), dim=-1)

    def scale(self) -> Tensor:
        """The factor (1,) on cosine similarities, at most 100 (Radford et al. 2021, section 2.5)."""
        self.keep_in_bounds()
        return self.logit_scale.exp()

    @torch.no_grad()
    def keep_in_bounds(self) -> None:
        """Clamp the logit scale itself. A clamped copy would have no gradient above the bound, and stay there.

        The trainer calls this too after each step, because `scale` sees only a copy of a sharded model's parameter.
        """
        self.logit_scale.clamp_(max=self.max_logit_scale)


def _logit_scale_to_scalar(clip: CLIP, tensors: dict[str, Tensor], prefix: str, _) -> None:
    """Files hold the logit scale as a scalar, as those of other projects do."""
    tensors[f"{prefix}logit_scale"] = tensors[f"{prefix}logit_scale"].sum()  # FSDP's tensors cannot be reshaped


def _logit_scale_to_vector(clip: CLIP, tensors: dict[str, Tensor], prefix: str, *_) -> None:
    """The model holds it as (1,)."""
    name = f"{prefix}logit_scale"
    if name in tensors:
        tensors[name] = tensors[name].reshape(1)
