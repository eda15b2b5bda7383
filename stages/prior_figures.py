"""How close a prior's embeddings are to those of real images, on pairs of image and caption."""

import torch
from torch import Tensor

from stages.embed import EmbeddedImages
from stages.evaluation.metrics import distance_of_draws, same_group_cosine, share_of_gap
from unclip.devices import device_of
from unclip.interfaces import Prior
from unclip.settings import PriorSettings

PHRASINGS = 4
"""Phrasings that the images are shared among."""


def pair_cosines(model: Prior, images: EmbeddedImages, count: int, settings: PriorSettings) -> dict[str, Tensor]:
    """Cosines (count,) to the true image embedding of each of a data set's first `count` images, side by side.

    "sample", of what the prior draws for the image's caption, should be near "ceiling", of the other images of that
    caption (NaN where there are none), and so should be "redrawn", of the sample and a second one, which near 1 means
    that all draws are the same. "text", of the caption's text embedding, needs no prior; "unrelated", of the sample and
    the image of another caption (NaN where it is the same), should be far below. The images are shared among a few
    phrasings; within one, captions of one meaning are one string, so that another caption has another meaning.
    """
    cosines: dict[str, list[Tensor]] = {name: [] for name in ("sample", "redrawn", "text", "unrelated", "ceiling")}
    for phrasing, rows in enumerate(torch.arange(len(images))[:count].chunk(PHRASINGS)):
        generator = torch.Generator().manual_seed(phrasing)
        groups = images.data.draw(torch.arange(len(images)), generator, one_phrasing=True)
        captions = images.text_features(groups[rows])
        sample, other = (
            model.draw_embeddings(captions.to(device_of(model)), (rows + first).tolist(), settings).cpu()
            for first in (0, len(images))
        )
        true = images.embeddings[rows]
        same = groups[rows] == groups[rows].roll(1)
        cosines["sample"].append((sample * true).sum(dim=1))
        cosines["redrawn"].append((sample * other).sum(dim=1))
        cosines["text"].append((captions.embedding * true).sum(dim=1))
        cosines["unrelated"].append((sample * true.roll(1, dims=0)).sum(dim=1).masked_fill(same, torch.nan))
        cosines["ceiling"].append(same_group_cosine(images.embeddings, groups)[rows])
    return {name: torch.cat(values) for name, values in cosines.items()}


def pair_figures(cosines: dict[str, Tensor]) -> dict[str, float]:
    """Summarise `pair_cosines`: means, the share of the gap that is closed, and distances to the true images.

    The gap from text to ceiling is nearly none where captions say nearly all, and its share then NaN; the distance of
    the draws, beside 1 for collapse and that of the text embedding taken as a draw, tells there too.
    """
    sample = cosines["sample"]
    text = cosines["text"]
    ceiling = cosines["ceiling"]
    return {
        **{f"cosine_{name}": values.nanmean().item() for name, values in cosines.items()},
        "gap_closed": share_of_gap(sample, text, ceiling)["value"],
        "distance_sample": distance_of_draws(sample, cosines["redrawn"], ceiling),
        "distance_text": distance_of_draws(text, torch.ones_like(text), ceiling),
    }
