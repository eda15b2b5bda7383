"""What only Fashion-MNIST has: attributes that a rule finds in the pixels, and pairs of them that no training shows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.dataset import CaptionedImages
from data.fashion_mnist import FashionMNIST
from data.fashion_mnist_captions import AttributeRequest, attribute_captions, attribute_codes, attributes
from stages.evaluation.drawing import TrueEmbeddings, draw
from stages.evaluation.judge import judge
from stages.evaluation.metrics import share
from stages.evaluation.reference import Reference, Section
from unclip import UnCLIP
from unclip.grids import captioned_grid


def has_attributes(data: CaptionedImages) -> bool:
    return isinstance(data, FashionMNIST)


def told_apart(pipe: UnCLIP, data: FashionMNIST, embeddings: Tensor) -> dict[str, Any]:
    """Of the images (N, D) that show an extreme of a measure: for how many its word is nearer than its opposite."""
    requests = attribute_captions()
    text = pipe.encode_text([a.caption for a in requests]).cpu()
    figures = {}
    for measure, name in enumerate(("dark or light", "narrow or wide")):
        extremes = {(a.label, a.code): text[i] for i, a in enumerate(requests) if a.measure == measure}
        low, high = (torch.stack([extremes[c, code] for c in range(len(data.classes))]) for code in (1, 2))
        nearer_high = (embeddings * (high - low)[data.labels]).sum(dim=1) > 0
        shown = data.attributes[:, measure]
        figures[name] = share((nearer_high == (shown == 2))[shown > 0])
    return figures


def seen_attributes(pipe: UnCLIP, reference: Reference, true: TrueEmbeddings, way: str, n: int, seed: int) -> Section:
    """Obedience to attributes that the training showed in the class, of n samples per caption."""
    requests = [a for a in attribute_captions() if not a.held_out]
    labels, attributes_shown = true.data.labels, true.data.attributes
    shown = {a.caption: (labels == a.label) & (attributes_shown[:, a.measure] == a.code) for a in requests}
    images, _ = draw(pipe, way, list(shown), n, seed, true.embeddings[true.rows(shown, n)])
    return obedience(f"{way}: attributes", images, requests, [a.word for a in requests], reference)


def held_out_section(pipe: UnCLIP, reference: Reference, n: int, seed: int) -> Section:
    """Obedience to the pairs of class and attribute that no training caption or image shows."""
    requests = [a for a in attribute_captions() if a.held_out]
    captions = [a.caption for a in requests]
    images, _ = draw(pipe, "prior", captions, n, seed)
    names = [caption.removeprefix("an image of ") for caption in captions]
    every = sorted(attribute_captions(), key=lambda a: a.label)
    cells = np.split(draw(pipe, "prior", [a.caption for a in every], 2, seed)[0], reference.classes)
    words = [a.word for a in every if a.label == 0]
    pictures = {
        "attributes": captioned_grid(list(zip(reference.data.classes, cells, strict=True)), columns=words),
        "held-out": captioned_grid([(captions[i], images[i * n : i * n + min(n, 8)]) for i in range(len(requests))]),
    }
    return replace(obedience("prior: held-out", images, requests, names, reference), pictures=pictures)


def obedience(
    kind: str, images: np.ndarray, requests: Sequence[AttributeRequest], names: Sequence[str], reference: Reference
) -> Section:
    """How many of as many samples of each caption (N, H, W, C) obey the rule of the captions, and are of the class.

    Counted by `names`, one per caption, and for all. The arrays are named after the kind.
    """
    n = len(images) // len(requests)
    rows = torch.tensor([(a.label, a.measure, a.code) for a in requests])
    labels, measures, wanted = rows.repeat_interleave(n, dim=0).T
    measured = attributes(torch.from_numpy(images).permute(0, 3, 1, 2))
    codes = attribute_codes(measured, labels, reference.data.bounds)
    obeyed = codes.gather(1, measures[:, None])[:, 0] == wanted
    right = judge(reference.judge, images)[0].argmax(dim=1) == labels
    groups = {name: torch.from_numpy(np.repeat(names, n) == name) for name in dict.fromkeys(names)}
    groups["all"] = torch.ones_like(right)
    figures = {name: {"obeyed": share(obeyed[own]), "class": share(right[own])} for name, own in groups.items()}
    captions = np.repeat([a.caption for a in requests], n)
    return Section(figures, arrays={f"{kind} images": images, f"{kind} captions": captions})
