"""Memorisation: are samples copies of training images?"""

import numpy as np
import torch
from torch import Tensor

from data.dataset import CaptionedImages
from stages.evaluation.judge import judge_images
from stages.evaluation.metrics import nearest_neighbours, share_with_interval
from stages.evaluation.reference import Reference
from stages.evaluation.section import EvaluationContext, Section
from unclip.grids import captioned_grid

SHOWN = 8
"""Samples in the picture."""


def measure_memorisation(context: EvaluationContext) -> Section:
    samples = context.pipeline_samples.images
    return compare_with_training_images(samples, context.train, context.reference, context.seed)


def compare_with_training_images(
    samples: np.ndarray, train: CaptionedImages, reference: Reference, seed: int
) -> Section:
    """Measure the distance to the nearest training image, of samples uint8 (N, H, W, C) and of N test images.

    Distances are Euclidean, in pixels and in the judge's features. The picture shows the samples that are closest to a
    training image in pixels, above those images.
    """
    images = torch.from_numpy(samples).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(seed)
    test_rows = torch.randperm(len(reference.data), generator=generator)[: len(images)]
    _, sample_features = judge_images(reference.judge, images)
    _, train_features = judge_images(reference.judge, train.images)
    test_pixels = flatten_pixels(reference.data.images[test_rows])
    train_pixels = flatten_pixels(train.images)
    sample_distances, nearest_rows = nearest_neighbours(flatten_pixels(images), train_pixels)
    figures = {
        "pixels": compare_distances(sample_distances, nearest_neighbours(test_pixels, train_pixels)[0]),
        "features": compare_distances(
            nearest_neighbours(sample_features, train_features)[0],
            nearest_neighbours(reference.features[test_rows], train_features)[0],
        ),
    }
    closest = sample_distances[:, 0].argsort()[:SHOWN]
    nearest_images = train.images[nearest_rows[closest, 0]].permute(0, 2, 3, 1).numpy()
    rows = [
        ("the samples closest to a training image", samples[closest.numpy()]),
        ("the training images", nearest_images),
    ]
    return Section(figures, {"memorisation": captioned_grid(rows)})


def compare_distances(of_samples: Tensor, of_test_images: Tensor) -> dict[str, float | dict[str, float]]:
    """Compare distances to the nearest training image, (N, 1) and (M, 1)."""
    return {
        "samples_median": of_samples.median().item(),
        "test_median": of_test_images.median().item(),
        "samples_below_test_1st_percentile": share_with_interval(
            (of_samples < of_test_images.quantile(0.01)).flatten()
        ),
    }


def flatten_pixels(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float (N, C H W) in 0 .. 1."""
    return images.flatten(1).float() / 255
