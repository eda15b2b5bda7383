"""Which of several image embeddings that the prior drew for a caption is kept."""

import torch
from torch import Tensor, nn

SAME = 0.95
"""Cosine from which a caption says the same as the class's that is nearest to it: that one is then no rival."""


class Reranker(nn.Module):
    """Keeps a draw that CLIP takes for its caption, and not for another's.

    Ramesh et al. 2022, section 2.2, keep the draw with the highest dot product with the text embedding. That one is
    also the most typical, so the more draws, the less samples vary. Where the data has classes, their captions are
    rivals: how likely CLIP finds the caption beside them, as in zero-shot classification, tells a draw that shows
    something else from one that is merely unusual. Of a class's own caption the first draw that is likely enough is
    kept, so that unusual ones stay; if none is, the likeliest. Any other caption says more than its class, as "a dark
    bag" does, and is obeyed by degrees: of its draws the likeliest is kept. Without rivals the dot product decides.
    """

    def __init__(self, dim: int, rivals: int):
        super().__init__()
        # no part of the weights where there are none: those that were trained before this module have neither
        self.register_buffer("rivals", torch.zeros(rivals, dim), persistent=rivals > 0)
        self.register_buffer("scale", torch.ones(()), persistent=rivals > 0)

    def fit(self, rivals: Tensor, scale: float) -> None:
        """Take the unit text embeddings (R, D) of the rivals, and CLIP's factor on cosines."""
        self.rivals.copy_(rivals)
        self.scale.fill_(scale)

    def forward(self, candidates: Tensor, text: Tensor, accept: float) -> Tensor:
        """Which of K draws (N, K, D) is kept for each caption (N, D), all of unit norm: (N,).

        `accept` is the least probability of a class's caption that is likely enough.
        """
        own = torch.einsum("nkd,nd->nk", candidates, text)
        if not len(self.rivals):
            return own.argmax(dim=1)
        cosines = text @ self.rivals.T  # (N, R)
        nearest = cosines >= cosines.amax(dim=1, keepdim=True) - 1e-4  # of equal captions all
        same = nearest & (cosines > SAME)
        others = (candidates @ self.rivals.T).masked_fill(same[:, None], -torch.inf)  # (N, K, R)
        odds = self.scale * own - (self.scale * others).logsumexp(dim=2)  # (N, K), logarithms: they never saturate
        accepted = (odds.sigmoid() >= accept) & same.any(dim=1, keepdim=True)
        return torch.where(accepted.any(dim=1), accepted.int().argmax(dim=1), odds.argmax(dim=1))
