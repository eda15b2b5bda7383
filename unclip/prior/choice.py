"""Which of several image embeddings that the prior drew for a caption is kept."""

import torch
from torch import Tensor, nn

SAME = 0.95
"""Cosine from which two captions say the same: neither is then the other's rival."""


class Choice(nn.Module):
    """Keeps a draw that CLIP takes for its caption, and not for another's.

    Ramesh et al. 2022, section 2.2, keep the draw with the highest dot product with the text embedding. That one is
    also the most typical, so the more draws, the less samples vary. Where the data has classes, their captions are
    rivals: how likely CLIP finds the caption beside them, as in zero-shot classification, tells a draw that shows
    something else from one that is merely unusual. Of a class's own caption the first draw that is likely enough is
    kept, so that unusual ones stay. Any other caption says more than its class, as "a dark bag" does, and is obeyed by
    degrees: of its draws the likeliest is kept. Without rivals the dot product decides.
    """

    def __init__(self, dim: int, rivals: int):
        super().__init__()
        self.register_buffer("rivals", torch.zeros(rivals, dim), persistent=rivals > 0)
        self.register_buffer("scale", torch.ones(()), persistent=rivals > 0)

    def fit(self, rivals: Tensor, scale: float) -> None:
        """Take the unit text embeddings (R, D) of the rivals, and CLIP's factor on cosines."""
        self.rivals.copy_(rivals)
        self.scale.fill_(scale)

    def forward(self, candidates: Tensor, text: Tensor, accept: float) -> Tensor:
        """Which of K draws (N, K, D) is kept for each caption (N, D), all of unit norm: (N,).

        Of a class's caption the first that has a probability of at least `accept`; else the likeliest.
        """
        own = torch.einsum("nkd,nd->nk", candidates, text)
        if not len(self.rivals):
            return own.argmax(dim=1)
        same = text @ self.rivals.T > SAME  # (N, R)
        others = (candidates @ self.rivals.T).masked_fill(same[:, None], -torch.inf)  # (N, K, R)
        likely = (self.scale * torch.cat([own[..., None], others], dim=2)).softmax(dim=2)[..., 0]  # (N, K)
        accepted = (likely >= accept) & same.any(dim=1, keepdim=True)
        return torch.where(accepted.any(dim=1), accepted.int().argmax(dim=1), likely.argmax(dim=1))
