"""Redrawing: images that show another class than their caption's are drawn anew, from other embeddings.

Ramesh et al. 2021 (arXiv 2102.12092, section 2.6) draw many images of each caption and let CLIP choose the best. Here
CLIP only refuses: an image that passes is kept as it is, so that unusual ones are kept too, and few are drawn twice.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from unclip.clip.text_features import TextFeatures
from unclip.settings import PriorSettings, later_seeds


class Drawn(NamedTuple):
    """Images, and what the decoder drew them from."""

    images: Tensor
    """(N, C, H, W) in [-1, 1]."""
    embeddings: Tensor
    """(N, D)."""
    seeds: list[int]


def redraw_failed(
    first: Drawn,
    text: TextFeatures,
    seeds: list[int],
    settings: PriorSettings,
    draw: Callable[[TextFeatures, list[int]], Drawn],
    judge: Callable[[Tensor, TextFeatures], Tensor],
) -> Drawn:
    """Draw those of N images anew that CLIP does not take for what their captions say.

    Args:
        text: their captions.
        seeds: their own seeds, of which those of later attempts follow.
        settings: how often at most, and the least probability.
        draw: draw(text, seeds) draws other images, from other embeddings.
        judge: judge(images, text) tells the probability that CLIP gives to each image's caption.
    """
    images = first.images.clone()
    embeddings = first.embeddings.clone()
    kept_seeds = list(first.seeds)
    probabilities = judge(images, text).clone()
    for attempt in range(1, settings.redraws + 1):
        rows = (probabilities < settings.image_threshold).nonzero().flatten()
        if not len(rows):
            break
        again = draw(text[rows], later_seeds([seeds[row] for row in rows.tolist()], attempt))
        new_probabilities = judge(again.images, text[rows])
        is_better = new_probabilities > probabilities[rows]
        better = rows[is_better]
        images[better] = again.images[is_better]
        embeddings[better] = again.embeddings[is_better]
        probabilities[better] = new_probabilities[is_better]
        for i in is_better.nonzero().flatten().tolist():
            kept_seeds[rows[i]] = again.seeds[i]
    return Drawn(images, embeddings, kept_seeds)
