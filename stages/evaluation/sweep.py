"""A sweep over the settings of sampling: which draw best?"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from stages.evaluation.judge import judge_images
from stages.evaluation.metrics import frechet_distance, share_with_interval
from stages.evaluation.samples import resize_images
from stages.evaluation.section import EvaluationContext, Section

Settings = dict[str, Any]

PRIOR_GRID = {
    "prior_guidance": (1.0, 1.2, 1.5),
    "prior_num_candidates": (1, 4),
    "prior_threshold": (0.75, 0.85),
}
DECODER_GRID = {
    "guidance": (1.0, 1.5, 2.5, 4.0),
    "guidance_interval": ((0.0, 1.0), (0.3, 0.8)),
    "sampler": ("dpmpp", "ddpm"),
    "steps": (10,),
    "eta": (0.0,),
}
FAST_GRID = {
    "fast_steps": (1, 2, 4),
    "fast_levels": ((0.6, 0.15), (1.5, 0.3), (3.0, 0.6)),
}
"""Compared in place of the decoder's settings if a fast decoder draws."""


def sweep_settings(context: EvaluationContext) -> Section:
    """Measure caption accuracy and Frechet distance for all combinations of the grids; the best comes first.

    Samples are compared with the validation images: to choose by the test images would flatter them.
    """
    pipe = context.pipe
    judge = context.reference.judge
    validation = context.embedded_drivers.data
    n = context.sweep_samples // len(validation.classes)
    captions = [caption for caption in validation.class_captions for _ in range(n)]
    seeds = list(range(context.seed, context.seed + len(captions)))
    labels = torch.arange(len(validation.classes)).repeat_interleave(n)
    _, real_features = judge_images(judge, validation.images)
    rows = []
    for prior_settings in prior_combinations():
        for decoder_settings in fast_combinations() if context.draws_fast else decoder_combinations():
            settings = prior_settings | decoder_settings
            images = pipe(captions, 1, seeds, **settings).images
            scores, features = judge_images(judge, resize_images(images, validation.image_size))
            accuracy = share_with_interval(scores.argmax(dim=1) == labels)
            frechet = frechet_distance(features, real_features)
            rows.append({**settings, "caption_accuracy": accuracy, "frechet": frechet})
            print(f"{settings}: accuracy {accuracy['value']:.3f}, Frechet {frechet:.3f}", flush=True)
    return Section(sort_by_ranks(rows))


def grid_points(grid: dict[str, tuple]) -> Iterator[Settings]:
    """Yield every combination of a grid's values."""
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def prior_combinations() -> Iterator[Settings]:
    for settings in grid_points(PRIOR_GRID):
        is_first_threshold = settings["prior_threshold"] == PRIOR_GRID["prior_threshold"][0]
        if settings["prior_num_candidates"] > 1 or is_first_threshold:  # a single candidate is kept at any threshold
            yield settings


def decoder_combinations() -> Iterator[Settings]:
    for settings in grid_points(DECODER_GRID):
        is_first_interval = settings["guidance_interval"] == DECODER_GRID["guidance_interval"][0]
        if settings["guidance"] != 1 or is_first_interval:  # no guidance is the same on every interval
            yield settings


def fast_combinations() -> Iterator[Settings]:
    for settings in grid_points(FAST_GRID):
        is_first_level = settings["fast_levels"] == FAST_GRID["fast_levels"][0]
        if settings["fast_steps"] > 1 or is_first_level:  # a single call is at no further level
            yield settings


def sort_by_ranks(rows: list[Settings]) -> list[Settings]:
    """Sort by the sum of two ranks: by accuracy, and by closeness to the real images. Ties share a rank."""

    def rank_sum(row: Settings) -> int:
        accuracy = row["caption_accuracy"]["value"]
        more_accurate = sum(other["caption_accuracy"]["value"] > accuracy for other in rows)
        closer = sum(other["frechet"] < row["frechet"] for other in rows)
        return more_accurate + closer

    return sorted(rows, key=rank_sum)
