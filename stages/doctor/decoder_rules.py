"""Rules on the decoder, by a few images that it draws: of true embeddings, or of captions, all from the same noise."""

from stages.doctor.evidence import Evidence
from stages.doctor.finding import Finding, Rule
from stages.doctor.pictures import (
    correlation,
    distance,
    grain,
    is_constant,
    nearest_distances,
    saturated_share,
    variety,
)

LEAST_RESPONSE = 0.25
"""Variety of the images that are drawn from the same noise, as a share of the real images'."""
LEAST_CAPTION_RESPONSE = 0.1
"""The same for images of captions alone, which say less."""
SATURATED = 0.25
"""Share of black and white values beyond that of the real images."""
GRAIN = 6.0
"""Grey levels on flat areas beyond those of real images. Visible from about 5; the committed decoders have less."""
CONSTANT = 0.25
"""Share of the drawn images that may be of one colour, beyond that of the real images."""
LEAST_LIKENESS = 0.4
"""Correlation of a drawn image with the one whose embedding it is of."""
COPY = 0.3
"""Share of the distance from a validation image to the nearest training image."""


def follows_embedding(evidence: Evidence, part: str) -> Finding | None:
    response = variety(evidence.drawn_from_embeddings) / max(1.0, variety(evidence.real_images))
    if response >= LEAST_RESPONSE:
        return None
    return Finding(
        "collapsed",
        f"from the same noise, images of different embeddings vary by {response:.2f} of what real images do (healthy: "
        f"above {LEAST_RESPONSE}): the decoder ignores the embedding",
        "train longer, and with --drop-image of at most 0.1",
    )


def follows_caption(evidence: Evidence, part: str) -> Finding | None:
    manifest = evidence.manifests["decoder"]
    reads_text = manifest.model.get("network", manifest.model).get("text", True)
    if not reads_text or not manifest.training.get("drop_image", 0) or manifest.kind == "text":
        return None
    response = variety(evidence.drawn_from_captions) / max(1.0, variety(evidence.real_images))
    if response >= LEAST_CAPTION_RESPONSE:
        return None
    return Finding(
        "collapsed",
        f"from the same noise, images of different captions vary by {response:.2f} of what real images do (healthy: "
        f"above {LEAST_CAPTION_RESPONSE}): without an embedding the decoder ignores the caption",
        "draw with the prior, or train with --drop-image 0.1 and a --drop-text below 0.5",
    )


def in_range(evidence: Evidence, part: str) -> Finding | None:
    excess = saturated_share(evidence.drawn_from_embeddings) - saturated_share(evidence.real_images)
    if excess <= SATURATED:
        return None
    return Finding(
        "diverged",
        f"{excess:.0%} more of the drawn values than of the real ones are black or white (healthy: at most "
        f"{SATURATED:.0%}): the predicted images leave their range",
        "lower the guidance; if that changes nothing, train with a lower learning rate",
    )


def not_constant(evidence: Evidence, part: str) -> Finding | None:
    of_drawn, of_real = (is_constant(x).float().mean() for x in (evidence.drawn_from_embeddings, evidence.real_images))
    share = (of_drawn - of_real).item()
    if share <= CONSTANT:
        return None
    return Finding(
        "collapsed",
        f"{share:.0%} more of the drawn images than of real ones are of one colour (healthy: at most {CONSTANT:.0%})",
        "train anew with a lower learning rate; look at train/preview-*.png for when it happened",
    )


def no_grain(evidence: Evidence, part: str) -> Finding | None:
    excess = grain(evidence.drawn_from_embeddings) - grain(evidence.real_images)
    if excess <= GRAIN:
        return None
    return Finding(
        "undertrained",
        f"flat areas have {excess:.1f} grey levels more noise than those of real images (healthy: at most {GRAIN:.0f})",
        "train longer, draw with more --steps, or train anew without --min-snr",
    )


def like_the_data(evidence: Evidence, part: str) -> Finding | None:
    drawn = evidence.drawn_from_embeddings
    real = evidence.real_images
    if drawn.shape != real.shape:
        return None
    likeness = correlation(drawn, real).mean().item()
    if drawn.shape[1] == 3 and distance(drawn.flip(1), real) < 0.8 * distance(drawn, real):
        return Finding(
            "mismatched",
            "drawn images are closer to the data with red and blue swapped",
            "the training read blue, green, red where the data now are red, green, blue: train anew",
        )
    if likeness < -LEAST_LIKENESS / 2:
        return Finding(
            "mismatched",
            f"drawn images correlate by {likeness:.2f} with those whose embeddings they are of, as negatives do",
            "the training read other pixel values than the data now hold, such as inverted ones: train anew",
        )
    if likeness < LEAST_LIKENESS:
        return Finding(
            "undertrained",
            f"drawn images correlate by {likeness:.2f} with those whose embeddings they are of (healthy: above "
            f"{LEAST_LIKENESS})",
            "train longer (--train.steps)",
        )
    return None


def no_copies(evidence: Evidence, part: str) -> Finding | None:
    train = evidence.train.images
    if train.shape[1:] != evidence.drawn_from_embeddings.shape[1:]:
        return None
    of_real = nearest_distances(evidence.real_images, train).median().item()
    if of_real < 2:  # the data validate on training images
        return None
    of_drawn = nearest_distances(evidence.drawn_from_embeddings, train).median().item()
    if of_drawn >= COPY * of_real:
        return None
    return Finding(
        "leaking",
        f"drawn images are {of_drawn:.1f} grey levels from the nearest training image, and new real images "
        f"{of_real:.1f} (healthy: at least {COPY} of that): the decoder copies its training images",
        "use more images, fewer steps or a smaller model",
    )


DECODER = ("decoder",)
NEEDS = ("clip", "decoder")
RULES = (
    Rule("images are like the data", DECODER, NEEDS, like_the_data),
    Rule("pixels stay in range", DECODER, NEEDS, in_range),
    Rule("images are no copies", DECODER, NEEDS, no_copies),
    Rule("images show something", DECODER, NEEDS, not_constant),
    Rule("images follow the embedding", DECODER, NEEDS, follows_embedding),
    Rule("images follow the caption", DECODER, NEEDS, follows_caption),
    Rule("flat areas are flat", DECODER, NEEDS, no_grain),
)
