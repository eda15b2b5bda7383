"""Bounds for all other figures: the judge's accuracy on real images, and the distances of real images and of noise."""

import torch

from stages.evaluation.judge import judge_images
from stages.evaluation.metrics import share_with_interval
from stages.evaluation.reference import compare_with_reference
from stages.evaluation.samples import repeat_rows
from stages.evaluation.section import EvaluationContext, Section


def measure_real_images(context: EvaluationContext) -> Section:
    """Measure the judge's accuracy on the test images, and how far training images and noise are from them.

    There are as many training images of each class as samples; their distance is the floor that samples can reach.
    Where the training images have no classes, any of them are taken.
    """
    reference = context.reference
    train = context.train
    n = context.samples_per_caption
    generator = torch.Generator().manual_seed(context.seed)
    rows = torch.randperm(len(train), generator=generator)
    if train.classes:
        labels = train.labels[rows]
        rows = torch.cat([repeat_rows(rows[labels == label], n) for label in range(reference.classes)])
    real = train.images[rows[: context.sample_count]]
    noise = torch.randint(0, 256, real.shape, dtype=torch.uint8, generator=generator)
    _, real_features = judge_images(reference.judge, real)
    _, noise_features = judge_images(reference.judge, noise)
    return Section(
        {
            "classifier_accuracy": share_with_interval(reference.predicted == reference.data.labels),
            "floor": compare_with_reference(real_features, reference),
            "noise": compare_with_reference(noise_features, reference),
            "test_images": len(reference.data),
        }
    )
