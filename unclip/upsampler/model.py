"""The network of the upsampler (Ramesh et al. 2022, appendix C): a UNet that reads the small image, enlarged, as well.

It has no attention, and normalises each pixel by itself. So a pixel of its output depends on the pixels within `reach`
only: it is trained on crops, and computes images of any size, in tiles where they are large.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unclip.decoder.unet import UNet, UNetConfig
from unclip.fields import bounded, check, flattened, from_data
from unclip.layers import EmbeddingScaler, timestep_embedding

LOCAL_UNET = UNetConfig(
    space_to_depth=2,
    width=32,
    multipliers=(1, 2, 4),
    blocks=1,
    attention_levels=(),
    middle_attention=False,
    norm="pixel",
)


@dataclass(frozen=True)
class UpsamplerConfig:
    unet: UNetConfig = flattened(LOCAL_UNET)
    factor: int = bounded(4, 2, 16)
    """Height and width of the large image over those of the small one."""
    embedding: bool = False
    """Read the image embedding too."""
    embed_dim: int = from_data(0, 0, 16_384)
    """Dimension of CLIP's embeddings."""
    channels: int = from_data(3, 1, 4)
    """1 for grey, 3 for colour."""
    low_size: int = from_data(32, 1, 1024)
    """Height and width of the small images, in pixels."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.unet.attention_levels or self.unet.middle_attention or self.unet.norm != "pixel":
            yield "norm", "be pixel, and attention off everywhere: the upsampler is computed in crops and tiles"


class UpsamplerNetwork(nn.Module):
    """A UNet over the noised large image and the enlarged small one, to which it adds what is missing."""

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        check(config)
        self.config = config
        width = config.unet.width
        vector = config.unet.vector_width
        self.time = nn.Sequential(nn.Linear(width, vector), nn.SiLU(), nn.Linear(vector, vector))
        self.augmentation = nn.Sequential(nn.Linear(width, vector), nn.SiLU(), nn.Linear(vector, vector))
        self.scaler = EmbeddingScaler(config.embed_dim) if config.embedding else None
        self.to_vector = nn.Linear(config.embed_dim, vector) if config.embedding else None
        self.unet = UNet(config.unet, 2 * config.channels, config.channels)

    def forward(
        self, x: Tensor, time: Tensor, enlarged: Tensor, augmentation: Tensor, embeddings: Tensor | None = None
    ) -> Tensor:
        """Predict clean large images for noised ones x (B, C, H, W) at times (B,), for any H and W.

        Args:
            enlarged: the small images, noised and then enlarged to (B, C, H, W).
            augmentation: times (B,) of the noise on the small images.
            embeddings: unit image embeddings (B, D), for a network that reads them.
        """
        width = self.config.unet.width
        vector = self.time(timestep_embedding(time, width).to(x.dtype))  # (B, E)
        vector = vector + self.augmentation(timestep_embedding(augmentation, width).to(x.dtype))
        if self.to_vector is not None and self.scaler is not None and embeddings is not None:
            vector = vector + self.to_vector(self.scaler.scale(embeddings))
        details = self.unet(torch.cat([x, enlarged], dim=1), vector)  # (B, C, H, W), zero where an image is flat
        return enlarged + details
