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
    if not len(classes):
        return np.einsum("nkd,nd->nk", candidates, text).argmax(axis=1)
    log_odds, is_class_caption = caption_log_odds(candidates, text, classes, logit_scale)
    passes = (sigmoid(log_odds) >= threshold) & is_class_caption[:, None]
    return np.where(passes.any(axis=1), passes.argmax(axis=1), log_odds.argmax(axis=1))


def image_probabilities(
    embeddings: np.ndarray, text: np.ndarray, empty: np.ndarray, classes: np.ndarray, logit_scale: float
) -> np.ndarray:
    """CLIP's probabilities (N,) that images show their captions' classes; 1 for a caption that is no class's own.

    Args:
        embeddings: the images' unit embeddings (N, D).
        empty: (N,), True for empty captions.
    """
    if not len(classes):
        return np.ones(len(text), np.float32)
    log_odds, is_class_caption = caption_log_odds(embeddings[:, None], text, classes, logit_scale)
    return np.where(is_class_caption & ~empty, sigmoid(log_odds[:, 0]), np.float32(1))


def caption_log_odds(
    candidates: np.ndarray, text: np.ndarray, classes: np.ndarray, logit_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """The log odds (N, K) that CLIP gives each candidate's caption, and whether it is a class's own caption (N,)."""
    cosines = np.einsum("nkd,nd->nk", candidates, text)
    is_same = same_meaning(text, classes)
    competitors = np.where(is_same[:, None], -np.inf, logit_scale * (candidates @ classes.T))  # (N, K, R)
    highest = competitors.max(axis=2, keepdims=True)
    log_sum = highest[..., 0] + np.log(np.exp(competitors - highest).sum(axis=2))
    return logit_scale * cosines - log_sum, np.any(is_same, axis=1)


def same_meaning(text: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether captions, by their text embeddings (N, D), mean the same as those of R classes: (N, R)."""
    text_to_class = text @ classes.T
    nearest = text_to_class >= text_to_class.max(axis=1, keepdims=True) - 1e-4
    return nearest & (text_to_class > SAME_MEANING)


def keeps_first(text: np.ndarray, empty: np.ndarray, classes: np.ndarray, threshold: float) -> np.ndarray:
    """Whether the first candidate of each caption (N,) is always kept; see `unclip.prior.reranking`."""
    if threshold > 0 or not len(classes):
        return empty
    return empty | same_meaning(text, classes).any(axis=1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # an infinite exponential stands for a probability of 0
        return 1 / (1 + np.exp(-x))
