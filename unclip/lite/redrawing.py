"""Redrawing of images that show another class than their caption's: `unclip.redrawing`, for NumPy's arrays."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from unclip.lite.captions import Features
from unclip.settings import PriorSettings, later_seeds


class Drawn(NamedTuple):
    """Images, and what the decoder drew them from."""

    images: np.ndarray
    """(N, C, H, W) in [-1, 1]."""
    embeddings: np.ndarray
    """(N, D)."""
    seeds: np.ndarray
    """int64 (N,)."""


def redraw_failed(
    text: Features,
    seeds: Sequence[int],
    settings: PriorSettings,
    draw: Callable[[Features, Sequence[int]], Drawn],
    judge: Callable[[np.ndarray, Features], np.ndarray],
) -> Drawn:
    """Draw an image of each of N captions, and those anew that CLIP does not take for what their captions say.

    Args:
        seeds: their own seeds, of which those of later attempts follow.
        settings: how often at most, and the least probability.
        draw: draw(text, seeds) draws embeddings and images.
        judge: judge(images, text) tells the probability that CLIP gives to each image's caption.
    """
    kept = draw(text, seeds)
    if not settings.redraws:
        return kept
    probabilities = judge(kept.images, text)
    for attempt in range(1, settings.redraws + 1):
        [rows] = (probabilities < settings.image_threshold).nonzero()
        if not len(rows):
            break
        again = draw(text[rows], later_seeds([seeds[row] for row in rows.tolist()], attempt))
        new_probabilities = judge(again.images, text[rows])
        is_better = new_probabilities > probabilities[rows]
        for values, others in zip((*kept, probabilities), (*again, new_probabilities), strict=True):
            values[rows[is_better]] = others[is_better]
    return kept
