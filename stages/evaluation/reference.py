"""The real images that samples are compared with, and the distances to them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.dataset import CaptionedImages
from stages.evaluation.judge import Judge, judge_images
from stages.evaluation.metrics import frechet_distance, in_manifold, share_with_interval

BOOTSTRAPS = 10


@dataclass(frozen=True)
class Reference:
    """The test images as the judge sees them."""

    judge: Judge
    data: CaptionedImages
    predicted: Tensor
    """The classes that the judge sees in them (N,)."""
    features: Tensor
    """The judge's features of them (N, F)."""

    @classmethod
    def from_images(cls, judge: Judge, data: CaptionedImages) -> "Reference":
        scores, features = judge_images(judge, data.images)
        return cls(judge, data, scores.argmax(dim=1), features)

    @property
    def classes(self) -> int:
        return len(self.data.classes)


def compare_with_reference(features: Tensor, reference: Reference) -> dict[str, Any]:
    """Return the distances from images, given by the judge's features of them (N, F), to the test images.

    The Frechet distance is taken to all test images; precision and recall are taken with N of them.
    """
    generator = torch.Generator().manual_seed(0)
    resampled = [torch.randint(len(features), (len(features),), generator=generator) for _ in range(BOOTSTRAPS)]
    bootstraps = torch.tensor([frechet_distance(features[rows], reference.features) for rows in resampled])
    real = reference.features[torch.randperm(len(reference.data), generator=generator)[: len(features)]]
    return {
        "frechet": frechet_distance(features, reference.features),
        "frechet_bootstrap_deviation": bootstraps.std().item(),
        "precision": share_with_interval(in_manifold(features, real)),
        "recall": share_with_interval(in_manifold(real, features)),
        "n": len(features),
    }
