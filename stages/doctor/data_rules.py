"""Rules on the data: they judge what the pipeline was trained on, by the name "data"."""

import torch
from torch import Tensor

from data.problems import Problems
from data.sources import SOURCES, is_named_source, read_listing
from data.splits import limit_records, split_records
from stages.doctor.evidence import Evidence
from stages.doctor.finding import Finding, Rule
from stages.doctor.pictures import correlation, is_constant, nearest_distances

SAMPLE = 1000
"""Training images that are looked at."""
FEWEST_CAPTIONS = 4
"""Captions, as many as if all were equally frequent, among which CLIP has something to tell apart."""
SAME = 2.0
"""Root mean square difference in grey levels below which two images are the same picture, saved twice."""
COPIED = 0.05
"""Share of the validation images that may be among the training images. Fashion-MNIST's own share is below 0.01."""
SEEN_ON_PURPOSE = ("emoji",)
"""Sources that validate on training images, and say so."""
BROKEN = 0.2
"""Share of the rows that may be unreadable."""
ONE_COLOUR = 0.5
"""Share of the images that may be of one colour."""


def some(images: Tensor, count: int = SAMPLE) -> Tensor:
    """At most `count` of N images, spread evenly."""
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()]


def few_captions(evidence: Evidence, part: str) -> Finding | None:
    train = evidence.train
    ids = train.draw(torch.arange(len(train)), torch.Generator().manual_seed(0), one_phrasing=True)
    shares = ids.unique(return_counts=True)[1].double() / len(ids)
    effective = 1 / shares.square().sum().item()
    if effective >= FEWEST_CAPTIONS:
        return None
    return Finding(
        "mismatched",
        f"the captions are as varied as {effective:.1f} equally frequent ones (healthy: at least {FEWEST_CAPTIONS}), "
        "so that CLIP learns little more than to tell these apart",
        "give the images captions that say what is in each of them",
    )


def copies_in_validation(evidence: Evidence, part: str) -> Finding | None:
    if evidence.config.source in SEEN_ON_PURPOSE:
        return None
    copies = nearest_distances(some(evidence.validation.images, 200), evidence.train.images) < SAME
    share = copies.float().mean().item()
    if share <= COPIED:
        return None
    return Finding(
        "leaking",
        f"{share:.0%} of the validation images are training images too (healthy: at most {COPIED:.0%}), so that "
        "validation figures praise what was learned by heart",
        "remove the duplicates, which python -m data.inspect counts, or split the data by what the images show",
    )


def one_colour(evidence: Evidence, part: str) -> Finding | None:
    share = is_constant(some(evidence.train.images)).float().mean().item()
    if share <= ONE_COLOUR:
        return None
    return Finding(
        "mismatched",
        f"{share:.0%} of the training images are of one colour (healthy: at most {ONE_COLOUR:.0%})",
        "look at them with python -m data.inspect; a mask or an alpha channel may stand in place of the image",
    )


def narrow_range(evidence: Evidence, part: str) -> Finding | None:
    highest = int(some(evidence.train.images).max())
    if highest >= 32:
        return None
    return Finding(
        "mismatched",
        f"no pixel of the training images is above {highest} of 255 (healthy: at least 32)",
        "the images hold numbers of another range, such as 0 to 1 or class numbers: multiply them up to 0 to 255",
    )


def mostly_broken(evidence: Evidence, part: str) -> Finding | None:
    config = evidence.config
    if is_named_source(config.source) and SOURCES[config.source].load_split is not None:
        return None
    problems = Problems(config.source)
    listing = read_listing(config, problems)
    listed = len(limit_records(split_records(listing.records, "train"), config.limit))
    lost = sum(problems.rows.values()) + max(0, listed - len(evidence.train))
    share = lost / (len(listing.records) + sum(problems.rows.values()))
    if share <= BROKEN:
        return None
    return Finding(
        "mismatched",
        f"{share:.0%} of the rows cannot be used (healthy: at most {BROKEN:.0%}), so that the rest stands for all",
        "python -m data.inspect lists them with the reasons",
    )


def splits_inverted(evidence: Evidence, part: str) -> Finding | None:
    """Images of one kind have similar means, place by place; those of a split that is inverted have opposite ones."""
    means = [some(data.images).float().mean(dim=0) for data in (evidence.train, evidence.validation)]
    if min(mean.std() for mean in means) < 4 or (alike := correlation(*(mean[None] for mean in means)).item()) > -0.5:
        return None
    return Finding(
        "mismatched",
        f"the mean training image and the mean validation image correlate by {alike:.2f} (healthy: above -0.5), as "
        "negatives do",
        "invert one of the two splits",
    )


def splits_differ_in_colour_order(evidence: Evidence, part: str) -> Finding | None:
    train, validation = (
        some(data.images).float().mean(dim=(0, 2, 3)) for data in (evidence.train, evidence.validation)
    )
    apart, reversed_apart = ((train - mean).norm().item() for mean in (validation, validation.flip(0)))
    if apart < 20 or reversed_apart > apart / 3:
        return None
    return Finding(
        "mismatched",
        f"the mean colours of training and validation images are {apart:.0f} grey levels apart, and "
        f"{reversed_apart:.0f} if red and blue are swapped",
        "one of the two splits holds blue, green, red: swap its channels",
    )


DATA = ("data",)
RULES = (
    Rule("captions differ", DATA, ("data",), few_captions),
    Rule("validation images are new", DATA, ("data",), copies_in_validation),
    Rule("images show something", DATA, ("data",), one_colour),
    Rule("pixels use their range", DATA, ("data",), narrow_range),
    Rule("rows can be read", DATA, ("data",), mostly_broken),
    Rule("splits are of the same polarity", DATA, ("data",), splits_inverted),
    Rule("splits have the same order of colours", DATA, ("data",), splits_differ_in_colour_order),
)
