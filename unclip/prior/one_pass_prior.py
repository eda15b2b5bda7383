"""The one-pass prior (Patel et al. 2023, ECLIPSE, arXiv 2312.04655): caption and noise -> image embedding, at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unclip.clip.text_features import TextFeatures
from unclip.devices import inference
from unclip.diffusion.noise import PRIOR_STREAM, RowNoise
from unclip.fields import check, flattened, from_data
from unclip.prior.axis_scaler import AxisScaler
from unclip.prior.model import Prefix, PriorConfig, PriorTransformer
from unclip.prior.reranking import Reranker
from unclip.settings import PriorSettings

PURE_NOISE = 1000
"""The time at which the network is always called."""


@dataclass(frozen=True)
class OnePassPriorConfig:
    network: PriorConfig = flattened(PriorConfig())
    num_classes: int = from_data(0, 0, 65_536)
    """Number of classes in the data, whose captions the reranker compares a candidate with; 0 where there are none."""


class OnePassPrior(nn.Module):
    """The diffusion prior's network, called once on pure noise: its prediction is the sample."""

    config_class: ClassVar[type] = OnePassPriorConfig
    ignores: ClassVar[tuple[str, ...]] = ("steps", "spacing")
    data_buffers = ("reranker.",)
    """Buffers that fine-tuning fits to its own data; those of scaler and regression are loaded with the weights."""

    def __init__(self, config: OnePassPriorConfig):
        super().__init__()
        check(config)
        self.config = config
        self.network = PriorTransformer(config.network)
        self.scaler = AxisScaler(config.network.embed_dim)
        self.reranker = Reranker(config.network.embed_dim, config.num_classes)

    def predict(self, noise: Tensor, text: TextFeatures) -> Tensor:
        """Noise (B, D) and B captions -> scaled image embeddings (B, D), for training."""
        time = noise.new_full(noise.shape[:1], PURE_NOISE)
        residual = self.network.forward_with_text(noise, time, text.embedding, text.tokens, text.mask, text.empty)
        return self.network.centre(text.embedding, text.empty) + residual

    def map_text(self, text: Tensor) -> Tensor:
        """Image embeddings (N, D), not of unit norm, predicted from text embeddings (N, D) by ridge regression."""
        return self.scaler.restore(self.network.regression(text))

    @inference()
    def draw_embeddings(self, text: TextFeatures, seeds: Sequence[int], settings: PriorSettings) -> Tensor:
        """Draw unit image embeddings (N, D), one for each of N captions; each depends on its own seed."""
        count = len(text)
        rows = torch.arange(count, device=text.embedding.device).repeat(settings.num_candidates)
        noise = torch.cat([RowNoise(seeds, PRIOR_STREAM, i)(text.embedding) for i in range(settings.num_candidates)])
        x = self._predict_from(noise, self._read(text).select(rows))
        if settings.guidance != 1:
            x = torch.lerp(self._predict_from(noise, self._read(text.null()).select(rows)), x, settings.guidance)
        return self.reranker.keep(self.scaler.unscale(x), text.embedding, text.empty, settings.threshold)

    def _read(self, text: TextFeatures) -> Prefix:
        return self.network.prefix(text.embedding, text.tokens, text.mask, text.empty)

    def _predict_from(self, noise: Tensor, prefix: Prefix) -> Tensor:
        return prefix.centre + self.network(noise, noise.new_full(noise.shape[:1], PURE_NOISE), prefix)
