"""The error budget: where on the way from caption to pixels accuracy and realism are lost."""

import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.evaluation.attributes import has_attributes, seen_attributes
from stages.evaluation.drawing import WAYS, TrueEmbeddings, draw
from stages.evaluation.judge import judge
from stages.evaluation.metrics import confusion, share
from stages.evaluation.reference import Reference, Section, distances, inception_fid
from unclip import UnCLIP
from unclip.grids import captioned_grid

SHOWN = 20
"""Classes in the pictures."""


def error_budget(pipe: UnCLIP, reference: Reference, true: TrueEmbeddings, n: int, seed: int) -> Section:
    """The same figures for each way to drive the decoder: on n samples per plain caption, and on attribute captions."""
    data, classes = reference.data, reference.classes
    labels = torch.arange(classes).repeat_interleave(n)
    rows = true.rows({name: true.data.labels == c for c, name in enumerate(data.classes)}, n)
    figures, arrays, shown = {}, {}, []
    for way in WAYS:
        began = time.perf_counter()
        images, embeddings = draw(pipe, way, data.class_captions, n, seed, true.embeddings[rows])
        scores, features = judge(reference.judge, images)
        predicted, by_class = scores.argmax(dim=1), images.reshape(classes, n, *images.shape[1:])
        figures[way] = {"caption_accuracy": share(predicted == labels), **distances(features, reference)}
        arrays |= {f"{way}: images": images, f"{way}: labels": labels.numpy()}
        if way == "true embedding":
            figures[way] |= real_images_read(pipe, reference, true, rows)
        if way == "prior":
            arrays["prior: embeddings"] = embeddings.numpy()
            grid = captioned_grid([(c, own[:8]) for c, own in zip(data.class_captions, by_class, strict=True)][:SHOWN])
            right = predicted == labels
            figures[way] |= {
                "caption_accuracy_by_class": {name: share(right[labels == c]) for c, name in enumerate(data.classes)},
                "confusion": confusion(labels, predicted, classes).tolist(),
                "inception_fid": inception_fid(images, data.images, pipe.device),
            }
        if has_attributes(data) and way != "nothing":
            obeyed = seen_attributes(pipe, reference, true, way, max(1, len(labels) // 100), seed)
            figures[way]["attributes"] = obeyed.figures
            arrays |= obeyed.arrays
        shown.append((way, np.concatenate(by_class[:SHOWN, :2])))
        print(f"  decoder driven by {way}: {time.perf_counter() - began:.0f} s", flush=True)
    budget = captioned_grid(shown, columns=data.classes[:SHOWN])
    return Section(figures, {"grid": grid, "budget": budget}, arrays)


def real_images_read(pipe: UnCLIP, reference: Reference, true: TrueEmbeddings, rows: Tensor) -> dict[str, Any]:
    """How the images whose embeddings drive the decoder are read themselves: by the judge, and by CLIP."""
    labels = true.data.labels[rows]
    plain = pipe.encode_text(true.data.class_captions).cpu()
    scores, _ = judge(reference.judge, true.data.images[rows])
    return {
        "real_images": share(scores.argmax(dim=1) == labels),
        "zero_shot": share((true.embeddings[rows] @ plain.T).argmax(dim=1) == labels),
    }


def stage_losses(budget: dict[str, Any], floor: float) -> dict[str, Any]:
    """Where accuracy and realism are lost: the steps of two chains that lead from real images to the pipeline's.

    Accuracy: real images judged -> their embeddings read by CLIP (zero-shot) -> images decoded from them -> images
    decoded from the prior's. Frechet distance: the floor -> decoded from true embeddings -> from the prior's.

    The weakest stage by accuracy is "none" if the largest loss is within its own 95% interval.
    """
    true, prior = budget["true embedding"], budget["prior"]
    chain = [true["real_images"], true["zero_shot"], true["caption_accuracy"], prior["caption_accuracy"]]
    accuracy_lost, half_width = {}, {}
    for stage, (before, after) in zip(("clip", "decoder", "prior"), pairwise(chain), strict=True):
        accuracy_lost[stage] = before["value"] - after["value"]
        half_width[stage] = sum(((f["high"] - f["low"]) / 2) ** 2 for f in (before, after)) ** 0.5
    frechet_added = {"decoder": true["frechet"] - floor, "prior": prior["frechet"] - true["frechet"]}
    weakest = max(accuracy_lost, key=accuracy_lost.get)
    return {
        "accuracy_lost": accuracy_lost,
        "accuracy_lost_half_width": half_width,
        "frechet_added": frechet_added,
        "weakest_by_accuracy": weakest if accuracy_lost[weakest] > half_width[weakest] else "none",
        "weakest_by_frechet": max(frechet_added, key=frechet_added.get),
    }
