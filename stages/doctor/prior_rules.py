"""Rules on the prior, and on the statistics of the embeddings that it and the decoder were trained on."""

import torch
from torch import Tensor

from stages.doctor.evidence import Evidence
from stages.doctor.finding import Finding, Rule
from stages.evaluation.metrics import same_group_cosine

LEAST_VARIETY = 0.25
"""Share of the images' variety, as 1 minus the mean cosine of two of them, that draws have at least. The committed
prior has 1.0, a prior of 60 steps 0.4, and one that returns the mean of a caption 0."""
LEAST_CAPTION = 0.25
"""Share of the images' gain in cosine, of those of a caption over those of others, that draws have at least."""
GOOD_CAPTION = 0.6
LARGEST_SHIFT = 0.35
"""Root mean square difference of means, in deviations of each coordinate. 400 images of the same data have 0.05; other
weights of CLIP, or another preprocessing, 1 and more."""


def cosine_of_draws(draws: Tensor) -> float:
    """The mean cosine of two of K draws (M, K, D) for one caption."""
    groups = torch.arange(len(draws)).repeat_interleave(draws.shape[1])
    return same_group_cosine(draws.flatten(0, 1), groups).mean().item()


def one_image(evidence: Evidence, part: str) -> Finding | None:
    draws = evidence.prior_draws[:, 0]
    differ = evidence.differ[: len(draws), : len(draws)]
    if not differ.any():
        return None
    of_draws, of_images = (1 - (x @ x.T)[differ].mean().item() for x in (draws, evidence.embeddings[: len(draws)]))
    if of_images < 0.01 or of_draws >= LEAST_VARIETY * of_images:
        return None
    return Finding(
        "collapsed",
        f"draws for different captions vary by {of_draws / of_images:.2f} of what their images do (healthy: above "
        f"{LEAST_VARIETY}): the prior draws one image",
        "train longer or with a lower rate; if CLIP is at chance, train that anew first",
    )


def mean_of_caption(evidence: Evidence, part: str) -> Finding | None:
    ceiling = same_group_cosine(evidence.embeddings, evidence.groups).nanmean().item()
    of_images = 1 - ceiling
    of_draws = 1 - cosine_of_draws(evidence.prior_draws)
    if not of_images >= 0.02 or of_draws >= LEAST_VARIETY * of_images:  # NaN where no two images share a caption
        return None
    return Finding(
        "collapsed",
        f"draws for one caption vary by {of_draws / of_images:.2f} of what its images do (healthy: above "
        f"{LEAST_VARIETY}): the prior draws the mean of each caption",
        "train longer; with few steps of a prior that draws in one pass this is as expected: choose --kind diffusion",
    )


def follows_caption(evidence: Evidence, part: str) -> Finding | None:
    draws = evidence.prior_draws[:, 0]
    count = len(draws)
    differ = evidence.differ[:count, :count]
    if not differ.any():
        return None
    images = evidence.embeddings[:count]
    to_images = draws @ images.T
    between_images = (images @ images.T)[differ].mean()
    ceiling = same_group_cosine(evidence.embeddings, evidence.groups).nanmean()
    ceiling = torch.ones(()) if ceiling.isnan() else ceiling  # each caption has one image
    if ceiling - between_images < 0.01:
        return None
    share = ((to_images.diagonal().mean() - to_images[differ].mean()) / (ceiling - between_images)).item()
    if share >= GOOD_CAPTION:
        return None
    ignores = share < LEAST_CAPTION
    return Finding(
        "collapsed" if ignores else "undertrained",
        f"draws are closer to images of their caption than to others by {share:.2f} of what such images are among "
        f"themselves (healthy: above {GOOD_CAPTION}){': the prior ignores the caption' if ignores else ''}",
        "train longer; check that captions belong to their images: python -m data.inspect",
    )


def statistics_fit(evidence: Evidence, part: str) -> Finding | None:
    model = evidence.models[part]
    scaler = getattr(model, "scaler", None) if part == "prior" else model.network.image_condition.scaler
    if scaler is None or evidence.manifests[part].kind == "text":
        return None
    shift = scaler.scale(evidence.embeddings.mean(dim=0)).square().mean().sqrt().item()
    if shift <= LARGEST_SHIFT:
        return None
    return Finding(
        "mismatched",
        f"the embeddings of validation images are {shift:.1f} deviations off those that the {part} was trained on "
        f"(healthy: below {LARGEST_SHIFT})",
        "the CLIP, its preprocessing or the data has changed since: restore it, or train this part anew",
    )


RULES = (
    Rule("embeddings are those of the training", ("prior",), ("clip", "prior"), statistics_fit),
    Rule("embeddings are those of the training", ("decoder",), ("clip", "decoder"), statistics_fit),
    Rule("captions have draws of their own", ("prior",), ("clip", "prior"), one_image),
    Rule("draws for a caption differ", ("prior",), ("clip", "prior"), mean_of_caption),
    Rule("draws follow the caption", ("prior",), ("clip", "prior"), follows_caption),
)
