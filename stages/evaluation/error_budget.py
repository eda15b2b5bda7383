"""The error budget: where on the way from caption to pixels accuracy and realism are lost."""

import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.evaluation.attributes import has_attributes, measure_seen_attributes
from stages.evaluation.judge import judge_images
from stages.evaluation.metrics import confusion_matrix, share_with_interval
from stages.evaluation.reference import compare_with_reference
from stages.evaluation.samples import DRIVERS, choose_rows
from stages.evaluation.section import EvaluationContext, Section
from unclip.grids import captioned_grid

SHOWN_CLASSES = 20
"""Classes in the pictures, at most."""


def measure_error_budget(context: EvaluationContext) -> Section:
    """Take the same figures with each driver of the decoder, on plain captions and on captions with attributes."""
    data = context.reference.data
    classes = context.reference.classes
    n = context.samples_per_caption
    labels = torch.arange(classes).repeat_interleave(n)
    drivers = context.embedded_drivers
    matching = {name: drivers.data.labels == label for label, name in enumerate(data.classes)}
    true_rows = choose_rows(drivers.data, matching, n)
    figures = {}
    pictures = {}
    arrays = {}
    picture_rows = []
    for driver in DRIVERS:
        began = time.perf_counter()
        if driver == "prior":
            samples = context.pipeline_samples
        else:
            samples = context.draw_samples(driver, context.captions, n, drivers.embeddings[true_rows])
        scores, features = judge_images(context.reference.judge, samples.images)
        predicted = scores.argmax(dim=1)
        by_class = samples.images.reshape(classes, n, *samples.images.shape[1:])
        figures[driver] = {
            "caption_accuracy": share_with_interval(predicted == labels),
            **compare_with_reference(features, context.reference),
        }
        arrays |= {f"{driver}: images": samples.images, f"{driver}: labels": labels.numpy()}
        if driver == "true embedding":
            figures[driver] |= measure_true_images(context, true_rows)
        if driver == "prior":
            figures[driver] |= measure_pipeline(context, predicted, labels)
            arrays["prior: embeddings"] = samples.embeddings.numpy()
            pictures["grid"] = captioned_grid(
                [(context.captions[label], by_class[label, :8]) for label in range(min(classes, SHOWN_CLASSES))]
            )
        if has_attributes(data) and driver != "nothing":
            seen_attributes = measure_seen_attributes(context, driver, max(1, len(labels) // 100))
            figures[driver]["attributes"] = seen_attributes.figures
            arrays |= seen_attributes.arrays
        picture_rows.append((driver, np.concatenate(by_class[:SHOWN_CLASSES, :2])))
        print(f"  decoder driven by {driver}: {time.perf_counter() - began:.0f} s", flush=True)
    pictures["budget"] = captioned_grid(picture_rows, columns=data.classes[:SHOWN_CLASSES])
    return Section(figures, pictures, arrays)


def measure_true_images(context: EvaluationContext, rows: Tensor) -> dict[str, Any]:
    """Measure how the judge and CLIP classify the real images themselves whose embeddings drive the decoder."""
    drivers = context.embedded_drivers
    labels = drivers.data.labels[rows]
    scores, _ = judge_images(context.reference.judge, drivers.data.images[rows])
    cosines = drivers.embeddings[rows] @ context.caption_embeddings.T
    return {
        "real_images": share_with_interval(scores.argmax(dim=1) == labels),
        "zero_shot": share_with_interval(cosines.argmax(dim=1) == labels),
    }


def measure_pipeline(context: EvaluationContext, predicted: Tensor, labels: Tensor) -> dict[str, Any]:
    """Measure the samples of the whole pipeline in more detail, by the classes that the judge predicted (N,)."""
    data = context.reference.data
    is_right = predicted == labels
    return {
        "caption_accuracy_by_class": {
            name: share_with_interval(is_right[labels == label]) for label, name in enumerate(data.classes)
        },
        "confusion": confusion_matrix(labels, predicted, len(data.classes)).tolist(),
    }


def stage_losses(budget: dict[str, Any], floor: float) -> dict[str, Any]:
    """Return how much accuracy and realism is lost at each step of two chains from real images to samples.

    Accuracy: real images, judged -> their embeddings, classified by CLIP -> images decoded from these embeddings ->
    images decoded from the prior's. Frechet distance: the floor -> images decoded from true embeddings -> images
    decoded from the prior's.

    The weakest stage by accuracy is "none" if the largest loss is within its own 95% interval.
    """
    true = budget["true embedding"]
    prior = budget["prior"]
    chain = [true["real_images"], true["zero_shot"], true["caption_accuracy"], prior["caption_accuracy"]]
    accuracy_lost = {}
    half_width = {}
    for stage, (before, after) in zip(("clip", "decoder", "prior"), pairwise(chain), strict=True):
        accuracy_lost[stage] = before["value"] - after["value"]
        half_width[stage] = sum(((figure["high"] - figure["low"]) / 2) ** 2 for figure in (before, after)) ** 0.5
    frechet_added = {"decoder": true["frechet"] - floor, "prior": prior["frechet"] - true["frechet"]}
    weakest = max(accuracy_lost, key=accuracy_lost.get)
    return {
        "accuracy_lost": accuracy_lost,
        "accuracy_lost_half_width": half_width,
        "frechet_added": frechet_added,
        "weakest_by_accuracy": weakest if accuracy_lost[weakest] > half_width[weakest] else "none",
        "weakest_by_frechet": max(frechet_added, key=frechet_added.get),
    }
