"""The autoregressive prior as a part of a pipeline: caption -> principal components, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.clip.text_features import TextFeatures
from unclip.devices import inference
from unclip.diffusion.noise import PRIOR_STREAM, RowNoise
from unclip.fields import bounded, check, flattened, from_data
from unclip.layers import at_least_float32
from unclip.prior.autoregressive_model import AutoregressiveConfig, AutoregressiveTransformer
from unclip.prior.buckets import QuantileBuckets
from unclip.prior.principal_components import PrincipalComponents
from unclip.prior.reranking import Reranker
from unclip.settings import PriorSettings

FEWEST_BUCKETS = 16
"""Buckets of a principal component of little variance."""


@dataclass(frozen=True)
class AutoregressivePriorConfig:
    network: AutoregressiveConfig = flattened(AutoregressiveConfig())
    variance: float = bounded(0.99, 0.01, 1)
    """Share of the embeddings' variance that the principal components keep."""
    dot_buckets: int = bounded(16, 2, 1024)
    """Buckets of the dot product of text and image embedding."""
    draw_within: bool = True
    """Decode a bucket to a draw within it; else to its mean, which loses some variance."""
    num_classes: int = from_data(0, 0, 65_536)
    """Number of classes in the data, whose captions the reranker compares a candidate with; 0 where there are none."""


class AutoregressivePrior(nn.Module):
    """Draws the dot product of text and image embedding first, then the image embedding's principal components.

    Each is a bucket, see `QuantileBuckets`. So an embedding has a likelihood, which `log_likelihood` computes.
    """

    config_class: ClassVar[type] = AutoregressivePriorConfig
    reads: ClassVar[tuple[str, ...]] = ("temperature", "top_share")
    ignores: ClassVar[tuple[str, ...]] = ("steps", "spacing")
    data_buffers = ("reranker.",)
    """Buffers that fine-tuning fits to its own data; the others are loaded with the weights."""

    def __init__(self, config: AutoregressivePriorConfig):
        super().__init__()
        check(config)
        self.config = config
        self.network = AutoregressiveTransformer(config.network)
        self.components = PrincipalComponents(config.network.embed_dim)
        self.buckets = QuantileBuckets(config.network.embed_dim + 1, config.network.buckets)
        self.reranker = Reranker(config.network.embed_dim, config.num_classes)

    def fit(self, images: Tensor, texts: Tensor) -> None:
        """Fit principal components and buckets to pairs of unit embeddings, both (N, D).

        A component has as many times fewer buckets than the first as its deviation is smaller, so that all buckets are
        about equally wide.
        """
        self.components.fit(images, self.config.variance)
        deviations = self.components.deviations[: self.components.count]
        counts = (self.config.network.buckets * deviations / deviations[0].clamp(min=1e-12)).ceil()
        of_dot = torch.tensor([self.config.dot_buckets], device="cpu")
        counts = torch.cat([of_dot, counts.long().clamp(min=FEWEST_BUCKETS).cpu()])
        self.buckets.fit(self.numbers(images, texts), counts)

    def numbers(self, images: Tensor, texts: Tensor) -> Tensor:
        """Pairs of embeddings (N, D) -> the dot product and the components (N, 1 + K)."""
        dot_products = (images * texts).sum(dim=1, keepdim=True)
        return torch.cat([dot_products, self.components.project(images)], dim=1)

    def log_probabilities(self, index: Tensor, text: TextFeatures) -> Tensor:
        """ln of the probability (N, R) of each number's bucket (N, R), given those before it and the caption."""
        ranks = self.buckets.rank(index)[:, :-1]
        logits = at_least_float32(self.network(ranks, text.embedding, text.tokens, text.mask, text.empty))
        is_used = self.buckets.is_used[: index.shape[1]]
        log_probabilities = logits.masked_fill(~is_used, -torch.inf).log_softmax(dim=2)
        return log_probabilities.gather(2, index[..., None])[..., 0]

    @inference()
    def log_likelihood(self, images: Tensor, text: TextFeatures) -> Tensor:
        """ln of the density (N,) of unit image embeddings (N, D) given their captions, in nats.

        It is that of the K principal components: exact, a sum over all buckets that the dot product may fall into.
        """
        numbers = self.numbers(images, text.embedding)
        index = self.buckets.index(numbers)
        within = self.buckets.log_density(numbers)[:, 1:].sum(dim=1)
        terms = []
        for dot in range(int(self.buckets.counts[0])):
            index[:, 0] = dot
            terms.append(self.log_probabilities(index, text).sum(dim=1))
        return torch.stack(terms).logsumexp(dim=0) + within

    @inference()
    def draw_embeddings(self, text: TextFeatures, seeds: Sequence[int], settings: PriorSettings) -> Tensor:
        """Draw unit image embeddings (N, D), one for each of N captions; each depends on its own seed.

        All N x num_candidates candidates are one batch, of which the reranker keeps one for each caption.
        """
        count = len(text)
        length = 1 + self.components.count
        # first candidates of all captions, then second ones, and so on
        rows = torch.arange(count, device=text.embedding.device).repeat(settings.num_candidates)
        shape = text.embedding.new_empty(count, length, 2)
        noise = torch.cat([RowNoise(seeds, PRIOR_STREAM, i)(shape) for i in range(settings.num_candidates)])
        choice, place = torch.special.ndtr(noise).unbind(dim=2)  # uniform numbers: of buckets, and within them
        guided = settings.guidance != 1
        read = TextFeatures.cat([text, text.null()]) if guided else text  # N captions, then the nulls of them
        logits, past = self.network.prefix(read.embedding, read.tokens, read.mask, read.empty)
        rows = torch.cat([rows, rows + count]) if guided else rows
        logits = logits[rows]
        past = past.select(rows)
        index = torch.zeros_like(choice, dtype=torch.long)
        for number in range(length):
            if guided:
                conditional, null = logits.chunk(2)
                logits = torch.lerp(null, conditional, settings.guidance)
            logits = logits.masked_fill(~self.buckets.is_used[number], -torch.inf) / settings.temperature
            u = choice[:, number]
            if number == 0:
                u = 1 - settings.top_share * (1 - u)  # the dot product is from the top
            index[:, number] = draw_bucket(logits, u)
            if number + 1 < length:
                rank = self.buckets.rank(index[:, number : number + 1], number)[:, 0]
                logits, past = self.network.step(rank.repeat(2) if guided else rank, number, past)
        values = self.buckets.draw(index, place) if self.config.draw_within else self.buckets.mean(index)
        candidates = self.components.restore(values[:, 1:])
        return self.reranker.keep(candidates, text.embedding, text.empty, settings.threshold)


def draw_bucket(logits: Tensor, u: Tensor) -> Tensor:
    """Draw a bucket (N,) by its probability, from uniform numbers u (N,): the first up to which all sum to u or more.

    Rounding that depends on the batch moves a draw to a neighbouring bucket at most.
    """
    sums = F.softmax(at_least_float32(logits), dim=1).cumsum(dim=1)
    return (sums < u[:, None] * sums[:, -1:]).sum(dim=1)
