"""Attributes that a rule measures on the pixels: do samples show the dark, light, narrow or wide that was asked for?

Only Fashion-MNIST has such a rule. It also has pairs of class and attribute that no training caption or image shows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.dataset import CaptionedImages
from data.fashion_mnist import FashionMNIST
from data.fashion_mnist_captions import AttributeRequest, attribute_captions, attribute_codes, attributes
from stages.evaluation.judge import judge_images
from stages.evaluation.metrics import share_with_interval
from stages.evaluation.reference import Reference
from stages.evaluation.samples import choose_rows
from stages.evaluation.section import EvaluationContext, Section
from unclip import UnCLIP
from unclip.grids import captioned_grid

MEASURES = ("dark or light", "narrow or wide")


def has_attributes(data: CaptionedImages) -> bool:
    return isinstance(data, FashionMNIST)


def measure_told_apart(pipe: UnCLIP, data: FashionMNIST, embeddings: Tensor) -> dict[str, Any]:
    """Measure how often CLIP puts an image nearer to its attribute's word than to the opposite one.

    `embeddings` (N, D) are those of the data's images. Only images that show an extreme of a measure count.
    """
    requests = attribute_captions()
    text = pipe.encode_text([request.caption for request in requests]).cpu()
    figures = {}
    for measure, name in enumerate(MEASURES):
        by_class_and_code = {
            (request.label, request.code): text[i] for i, request in enumerate(requests) if request.measure == measure
        }
        classes = range(len(data.classes))
        low, high = (torch.stack([by_class_and_code[label, code] for label in classes]) for code in (1, 2))
        is_nearer_high = (embeddings * (high - low)[data.labels]).sum(dim=1) > 0
        codes = data.attributes[:, measure]
        figures[name] = share_with_interval((is_nearer_high == (codes == 2))[codes > 0])
    return figures


def measure_seen_attributes(context: EvaluationContext, driver: str, n: int) -> Section:
    """Measure obedience to attributes that training showed in the class, on n samples per caption."""
    requests = [request for request in attribute_captions() if not request.held_out]
    drivers = context.embedded_drivers
    labels = drivers.data.labels
    codes = drivers.data.attributes
    matching = {
        request.caption: (labels == request.label) & (codes[:, request.measure] == request.code) for request in requests
    }
    true_embeddings = drivers.embeddings[choose_rows(drivers.data, matching, n)]
    images, _ = context.draw_samples(driver, list(matching), n, true_embeddings)
    words = [request.word for request in requests]
    return measure_obedience(f"{driver}: attributes", images, requests, words, context.reference)


def measure_held_out(context: EvaluationContext) -> Section:
    """Measure obedience to the pairs of class and attribute that no training caption or image shows."""
    n = max(2, context.sample_count // 20)
    requests = [request for request in attribute_captions() if request.held_out]
    captions = [request.caption for request in requests]
    images, _ = context.draw_samples("prior", captions, n)
    names = [caption.removeprefix("an image of ") for caption in captions]
    section = measure_obedience("prior: held-out", images, requests, names, context.reference)
    held_out_rows = [(caption, images[i * n : i * n + min(n, 8)]) for i, caption in enumerate(captions)]
    pictures = {"attributes": draw_all_attributes(context), "held-out": captioned_grid(held_out_rows)}
    return Section(section.figures, pictures, section.arrays)


def draw_all_attributes(context: EvaluationContext) -> Image.Image:
    """Draw two samples of every class with every attribute: a row for each class."""
    requests = sorted(attribute_captions(), key=lambda request: request.label)
    images, _ = context.draw_samples("prior", [request.caption for request in requests], 2)
    cells = np.split(images, context.reference.classes)
    words = [request.word for request in requests if request.label == 0]
    return captioned_grid(list(zip(context.reference.data.classes, cells, strict=True)), columns=words)


def measure_obedience(
    name: str, images: np.ndarray, requests: Sequence[AttributeRequest], groups: Sequence[str], reference: Reference
) -> Section:
    """Measure how many samples show the attribute that was asked for, by the rule, and how many are of the class.

    Args:
        name: of the arrays.
        images: uint8 (N, H, W, C), equally many of each request.
        requests: what was asked for.
        groups: a name for each request; figures are taken over the requests of one name, and over all.
    """
    n = len(images) // len(requests)
    asked = torch.tensor([(request.label, request.measure, request.code) for request in requests])
    labels, measures, asked_codes = asked.repeat_interleave(n, dim=0).T
    measured = attributes(torch.from_numpy(images).permute(0, 3, 1, 2))
    codes = attribute_codes(measured, labels, reference.data.bounds)
    is_obeyed = codes.gather(1, measures[:, None])[:, 0] == asked_codes
    is_right_class = judge_images(reference.judge, images)[0].argmax(dim=1) == labels
    members = {group: torch.from_numpy(np.repeat(groups, n) == group) for group in dict.fromkeys(groups)}
    members["all"] = torch.ones_like(is_right_class)
    figures = {
        group: {
            "obeyed": share_with_interval(is_obeyed[is_member]),
            "class": share_with_interval(is_right_class[is_member]),
        }
        for group, is_member in members.items()
    }
    captions = np.repeat([request.caption for request in requests], n)
    return Section(figures, arrays={f"{name} images": images, f"{name} captions": captions})
