"""The fast decoder at one, two and four network calls, beside the decoder: the same true embeddings and seeds."""

import time
from typing import Any

import torch

from stages.evaluation.judge import judge_images
from stages.evaluation.metrics import share_with_interval
from stages.evaluation.reference import compare_with_reference
from stages.evaluation.samples import choose_rows
from stages.evaluation.section import EvaluationContext, Section

CALLS = (1, 2, 4)


def measure_few_calls(context: EvaluationContext) -> Section:
    """Measure images that are decoded from true embeddings, one candidate each."""
    settings: dict[str, dict[str, Any]] = {
        f"{calls} network calls": {"fast_steps": calls, "fast_num_candidates": 1} for calls in CALLS
    }
    settings["the decoder"] = {"fast_steps": 0, "num_candidates": 1}
    data = context.embedded_drivers.data
    matching = {name: data.labels == label for label, name in enumerate(data.classes)}
    embeddings = context.embedded_drivers.embeddings[choose_rows(data, matching, context.samples_per_caption)]
    labels = torch.arange(context.reference.classes).repeat_interleave(context.samples_per_caption)
    figures = {}
    arrays = {}
    for name, given in settings.items():
        began = time.perf_counter()
        samples = context.draw_samples(
            "true embedding", context.captions, context.samples_per_caption, embeddings, **given
        )
        seconds = (time.perf_counter() - began) / len(labels)
        scores, features = judge_images(context.reference.judge, samples.images)
        figures[name] = {
            "caption_accuracy": share_with_interval(scores.argmax(dim=1) == labels),
            **compare_with_reference(features, context.reference),
            "seconds_per_image": seconds,
        }
        arrays[f"{name}: images"] = samples.images
    return Section(figures, arrays=arrays)
