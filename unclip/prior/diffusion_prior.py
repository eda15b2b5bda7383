"""The diffusion prior as a part of a pipeline: caption -> image embeddings, sampled and reranked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unclip.clip.text_features import TextFeatures
from unclip.devices import inference
from unclip.diffusion.guidance import guided
from unclip.diffusion.noise import PRIOR_STREAM, RowNoise
from unclip.diffusion.prediction import at_level, make_denoiser, noised_pair
from unclip.diffusion.process import Level, NoiseLevels, Process, ProcessConfig
from unclip.diffusion.samplers import Denoised, dpmpp
from unclip.diffusion.spacing import SPACINGS
from unclip.fields import check, flattened, from_data
from unclip.layers import at_least_float32
from unclip.prior.axis_scaler import AxisScaler
from unclip.prior.model import Prefix, PriorConfig, PriorTransformer
from unclip.prior.reranking import Reranker
from unclip.settings import PriorSettings


@dataclass(frozen=True)
class DiffusionPriorConfig:
    network: PriorConfig = flattened(PriorConfig())
    diffusion: ProcessConfig = flattened(ProcessConfig(prediction="x0"))
    num_classes: int = from_data(0, 0, 65_536)
    """Number of classes in the data, whose captions the reranker compares a candidate with; 0 where there are none."""


class DiffusionPrior(nn.Module):
    """A transformer that denoises scaled image embeddings, the scaling, and the reranker of candidates."""

    config_class: ClassVar[type] = DiffusionPriorConfig
    network_class: ClassVar[type] = PriorTransformer
    data_buffers = ("reranker.",)
    """Buffers that fine-tuning fits to its own data; those of scaler and regression are loaded with the weights."""

    def __init__(self, config: DiffusionPriorConfig):
        super().__init__()
        check(config)
        self.config = config
        self.network = self.network_class(config.network)
        self.scaler = AxisScaler(config.network.embed_dim)
        self.reranker = Reranker(config.network.embed_dim, config.num_classes)
        self.process: Process = config.diffusion.build()

    def prefix(self, text: TextFeatures) -> Prefix:
        return self.network.prefix(text.embedding, text.tokens, text.mask, text.empty)

    def model(self, prefix: Prefix) -> Callable[[Tensor, Level], Tensor]:
        """model(x, level) -> clean scaled embeddings (B, D), for noised ones and B captions."""
        network = at_level(lambda x, time: self.network(x, time, prefix), self.process)
        denoise_residual = make_denoiser(network, self.config.diffusion.prediction)

        def model(x: Tensor, level: Level) -> Tensor:
            return prefix.centre + denoise_residual(x - level.alpha * prefix.centre, level).x0

        return model

    def squared_errors(self, embeddings: Tensor, text: TextFeatures, levels: NoiseLevels, noise: Tensor) -> Tensor:
        """The training loss (B,) of each pair: the squared error on the residual to the linear prediction.

        Args:
            embeddings: unit image embeddings (B, D) of B captions.
            levels, noise: what is added to them, such as `process.draw_levels` draws, and noise (B, D).
        """
        with torch.autocast(noise.device.type, enabled=False):
            residual = self.scaler.scale(embeddings) - self.network.centre(text.embedding, text.empty)
        noised, target = noised_pair(self.config.diffusion.prediction, residual, noise, levels)
        predicted = self.network.forward_with_text(
            noised, levels.time, text.embedding, text.tokens, text.mask, text.empty
        )
        return (at_least_float32(predicted) - target).square().mean(dim=1)

    def map_text(self, text: Tensor) -> Tensor:
        """Image embeddings (N, D), not of unit norm, predicted from text embeddings (N, D) by ridge regression."""
        return self.scaler.restore(self.network.regression(text))

    @inference()
    def draw_embeddings(self, text: TextFeatures, seeds: Sequence[int], settings: PriorSettings) -> Tensor:
        """Draw unit image embeddings (N, D), one for each of N captions, by diffusion; each depends on its own seed.

        The reranker keeps one of `settings.num_candidates` candidates; for an empty caption, which has no text
        embedding, the first one is kept. All N x num_candidates candidates are one batch.
        """
        count = len(text)
        process = self.process
        process.check_steps(settings.steps, "prior_steps")
        levels = SPACINGS[settings.spacing](process, settings.steps)
        # first candidates of all captions, then second ones, and so on
        rows = torch.arange(count, device=text.embedding.device).repeat(settings.num_candidates)
        if settings.guidance == 1:
            model = self.model(self.prefix(text).select(rows))
        else:  # N captions, then the N nulls that belong to them
            prefix = self.prefix(TextFeatures.cat([text, text.null()]))
            model = guided(self.model(prefix.select(torch.cat([rows, rows + count]))), settings.guidance)
        candidate_numbers = range(settings.num_candidates)
        noise = torch.cat([RowNoise(seeds, PRIOR_STREAM, i)(text.embedding) for i in candidate_numbers])
        x = dpmpp(lambda noised, level: Denoised(model(noised, level)), noise, levels)
        return self.reranker.keep(self.scaler.unscale(x), text.embedding, text.empty, settings.threshold)
