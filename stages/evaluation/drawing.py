"""Samples, drawn in each way to drive the decoder, or with each setting of the samplers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.dataset import CaptionedImages
from stages.evaluation.judge import Judge, judge
from stages.evaluation.metrics import frechet_distance, share
from stages.evaluation.reference import Section, first
from unclip import UnCLIP
from unclip.errors import UserError
from unclip.trajectory import Trajectory, denoising_strip

WAYS = ("true embedding", "prior", "text embedding", "caption alone", "nothing")
"""What drives the decoder (Ramesh et al. 2022, section 5.1)."""
SWEEP = {
    "prior_guidance": (1.0, 1.2, 1.5),
    "prior_num_candidates": (1, 4),
    "prior_threshold": (0.75, 0.85),
    "guidance": (1.0, 1.5, 2.5, 4.0),
    "guidance_interval": ((0.0, 1.0), (0.3, 0.8)),
    "sampler": ("dpmpp", "ddpm"),
    "steps": (10,),
}


@dataclass(frozen=True)
class TrueEmbeddings:
    """Real images and their embeddings (N, D), which drive the decoder in place of the prior's.

    They are not the images that samples are compared with, where there are others of the same captions.
    """

    data: CaptionedImages
    embeddings: Tensor

    def rows(self, shown: dict[str, Tensor], n: int) -> Tensor:
        """n rows per caption; `shown` says for each which images (N,) are of it. Raises UserError if none is."""
        for caption, images in shown.items():
            if not images.any():
                raise UserError(f"{self.data.name} lacks images of {caption!r}; raise --data.limit")
        return torch.cat([first(images.nonzero()[:, 0], n) for images in shown.values()])


def draw(
    pipe: UnCLIP, way: str, captions: Sequence[str], n: int, seed: int, true: Tensor | None = None, **settings
) -> tuple[np.ndarray, Tensor | None]:
    """n images per caption, uint8 (N, H, W, C), and the embeddings (N, D) that drove the decoder, if any did.

    Image i of all has seed + i. `true` are the embeddings for the way of that name; `settings` are the pipeline's.
    """
    captions = [caption for caption in captions for _ in range(n)]
    seeds = list(range(seed, seed + len(captions)))
    embeddings = None
    if way == "true embedding":
        embeddings = true
    elif way == "prior":
        embeddings = pipe.embed(captions, 1, seeds, **settings).cpu()
    elif way == "text embedding":
        embeddings = pipe.encode_text(captions).cpu()
    elif way == "nothing":
        captions = [""] * len(captions)
    return pipe.decode(embeddings, captions, seeds, **settings), embeddings


def denoising_section(pipe: UnCLIP, captions: Sequence[str], seed: int) -> Section:
    """Ten moments of one sample per caption."""
    trajectory = Trajectory()
    pipe(captions, seed=seed, on_step=trajectory)
    return Section(pictures={"strip": denoising_strip(captions, trajectory, 1)})


def sweep_section(pipe: UnCLIP, model: Judge, validation: CaptionedImages, samples: int, seed: int) -> Section:
    """Caption accuracy and Frechet distance for every combination of SWEEP, on the validation images, the best first.

    A choice made on the test images would flatter them.
    """
    n = samples // len(validation.classes)
    labels = torch.arange(len(validation.classes)).repeat_interleave(n)
    _, real = judge(model, validation.images)
    rows = []
    for values in product(*SWEEP.values()):
        setting = dict(zip(SWEEP, values, strict=True))
        if setting["guidance"] == 1 and setting["guidance_interval"] != (0.0, 1.0):
            continue  # no guidance is the same on every interval
        if setting["prior_num_candidates"] == 1 and setting["prior_threshold"] != SWEEP["prior_threshold"][0]:
            continue  # a single draw is kept, however likely
        images, _ = draw(pipe, "prior", validation.class_captions, n, seed, eta=0.0, **setting)
        scores, features = judge(model, images)
        accuracy = share(scores.argmax(dim=1) == labels)
        rows.append({**setting, "caption_accuracy": accuracy, "frechet": frechet_distance(features, real)})
        print(f"{setting}: accuracy {accuracy['value']:.3f}, Frechet {rows[-1]['frechet']:.3f}", flush=True)
    return Section(by_both_ranks(rows))


def by_both_ranks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted by how many settings are more accurate plus how many are closer to real images; ties share a rank."""

    def rank(row: dict[str, Any]) -> int:
        accuracy = row["caption_accuracy"]["value"]
        return sum((o["caption_accuracy"]["value"] > accuracy) + (o["frechet"] < row["frechet"]) for o in rows)

    return sorted(rows, key=rank)
