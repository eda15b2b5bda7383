"""Reranking: which of several candidate embeddings that the prior drew for a caption is kept."""

import torch
from torch import Tensor, nn

from unclip.devices import without_autocast

SAME_MEANING = 0.95
"""Cosine from which a caption means the same as the class caption that is nearest to it."""


class Reranker(nn.Module):
    """Keeps a candidate that CLIP takes for its own caption and not for another class's.

    Ramesh et al. 2022, section 2.2, keep the candidate with the highest dot product with the text embedding. It is also
    the most typical one, so more candidates mean less variety. Where the data has classes, this reranker compares with
    their captions instead: the probability that CLIP gives to the caption beside those of the other classes, as in
    zero-shot classification, tells a candidate that shows something else from one that is merely unusual.

    - For a class's own caption, keep the first candidate whose probability passes the threshold; this preserves unusual
      images. If none passes, keep the most probable one.
    - Any other caption, such as "a dark bag", says more than its class and is obeyed by degrees: keep the most probable
      candidate.
    - Without classes, keep the candidate with the highest dot product.
    """

    class_embeddings: Tensor
    logit_scale: Tensor

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        # not stored where there are no classes
        self.register_buffer("class_embeddings", torch.zeros(num_classes, dim), persistent=num_classes > 0)
        self.register_buffer("logit_scale", torch.ones(()), persistent=num_classes > 0)

    def fit(self, class_embeddings: Tensor, logit_scale: float) -> None:
        """Store the unit text embeddings (R, D) of the class captions, and CLIP's factor on cosines."""
        self.class_embeddings.copy_(class_embeddings)
        self.logit_scale.fill_(logit_scale)

    def forward(self, candidates: Tensor, text: Tensor, threshold: float) -> Tensor:
        """Choose one of K candidates (N, K, D) for each caption (N, D), all of unit norm. Returns its index (N,).

        Args:
            threshold: least probability at which a candidate for a class's own caption is kept.
        """
        if not len(self.class_embeddings):
            return torch.einsum("nkd,nd->nk", candidates, text).argmax(dim=1)
        log_odds, is_class_caption = self.log_odds(candidates, text)
        passes = (log_odds.sigmoid() >= threshold) & is_class_caption[:, None]
        return torch.where(passes.any(dim=1), passes.int().argmax(dim=1), log_odds.argmax(dim=1))

    def log_odds(self, candidates: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The log odds (N, K) that CLIP gives each candidate's caption, and whether it is a class's own caption (N,).

        Arguments as for `forward`, where the data has classes.
        """
        cosines = torch.einsum("nkd,nd->nk", candidates, text)
        same_meaning = self.same_meaning(text)
        competitors = (candidates @ self.class_embeddings.T).masked_fill(same_meaning[:, None], -torch.inf)  # (N, K, R)
        log_odds = self.logit_scale * cosines - (self.logit_scale * competitors).logsumexp(dim=2)  # (N, K)
        return log_odds, same_meaning.any(dim=1)

    def same_meaning(self, text: Tensor) -> Tensor:
        """Whether captions, by their text embeddings (N, D), mean the same as those of R classes: (N, R)."""
        text_to_class = text @ self.class_embeddings.T
        nearest = text_to_class >= text_to_class.amax(dim=1, keepdim=True) - 1e-4  # all of equal captions
        return nearest & (text_to_class > SAME_MEANING)

    def keeps_first(self, text: Tensor, empty: Tensor, threshold: float) -> Tensor:
        """Whether the first candidate of each caption (N,) is always kept, so that no other need be drawn.

        True for an empty caption and, at a threshold of 0, for a class's own. Arguments as for `keep`.
        """
        if threshold > 0 or not len(self.class_embeddings):
            return empty
        with without_autocast():
            return empty | self.same_meaning(text).any(dim=1)

    def image_probabilities(self, embeddings: Tensor, text: Tensor, empty: Tensor) -> Tensor:
        """CLIP's probabilities (N,) that images show their captions' classes; 1 for a caption that is no class's own.

        Args:
            embeddings: the images' unit embeddings (N, D).
            text, empty: see `keep`.
        """
        if not len(self.class_embeddings):
            return text.new_ones(len(text))
        with without_autocast():
            log_odds, is_class_caption = self.log_odds(embeddings[:, None], text)
        return torch.where(is_class_caption & ~empty, log_odds[:, 0].sigmoid(), 1.0)

    def keep(self, candidates: Tensor, text: Tensor, empty: Tensor, threshold: float) -> Tensor:
        """Keep one candidate (N, D) for each caption; for an empty one, which has no text embedding, the first.

        Args:
            candidates: unit embeddings (K N, D): the first ones of all captions, then the second ones, and so on.
            text: text embeddings (N, D).
            empty: (N,), True for empty captions.
            threshold: see `forward`.
        """
        candidates = candidates.unflatten(0, (-1, len(text))).transpose(0, 1)  # (N, K, D)
        with without_autocast():  # half precision would round odds by a third
            chosen = self(candidates, text, threshold).masked_fill(empty, 0)
        return candidates[torch.arange(len(text), device=text.device), chosen]
