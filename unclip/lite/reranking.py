"""Reranking of candidate embeddings: `unclip.prior.reranking`, for NumPy's arrays."""

import numpy as np

SAME_MEANING = 0.95
"""Cosine from which a caption means the same as the class caption that is nearest to it."""


def choose_candidates(
    candidates: np.ndarray, text: np.ndarray, classes: np.ndarray, logit_scale: float, threshold: float
) -> np.ndarray:
    """Choose one of K candidates (N, K, D) for each caption (N, D), all of unit norm. Returns its index (N,).

    Args:
        classes: text embeddings (R, D) of the class captions; R may be 0.
        logit_scale: CLIP's factor on cosines.
        threshold: least probability at which a candidate for a class's own caption is kept.
    """
    cosines = np.einsum("nkd,nd->nk", candidates, text)
    if not len(classes):
        return cosines.argmax(axis=1)
    text_to_class = text @ classes.T  # (N, R)
    nearest = text_to_class >= text_to_class.max(axis=1, keepdims=True) - 1e-4
    same_meaning = nearest & (text_to_class > SAME_MEANING)
    competitors = np.where(same_meaning[:, None], -np.inf, logit_scale * (candidates @ classes.T))  # (N, K, R)
    highest = competitors.max(axis=2, keepdims=True)
    log_sum = highest[..., 0] + np.log(np.exp(competitors - highest).sum(axis=2))
    log_odds = logit_scale * cosines - log_sum  # (N, K)
    passes = (1 / (1 + np.exp(-log_odds)) >= threshold) & same_meaning.any(axis=1, keepdims=True)
    return np.where(passes.any(axis=1), passes.argmax(axis=1), log_odds.argmax(axis=1))
