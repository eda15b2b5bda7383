"""Real images: what samples are compared with, what they and noise score, and whether samples are copies of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from data.dataset import CaptionedImages
from stages.evaluation.judge import Judge, judge
from stages.evaluation.metrics import coverage, frechet_distance, nearest, share
from unclip.grids import captioned_grid


@dataclass(frozen=True)
class Section:
    """What a section of the evaluation found: figures, pictures for evaluation.md, and arrays for evaluation.npz.

    A share or a mean among the figures is {"value", "low", "high", "n"}, with its 95% interval.
    """

    figures: Any = None
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """The test images, as the judge sees them."""

    judge: Judge
    data: CaptionedImages
    predicted: Tensor
    """The classes that the judge sees in them (N,)."""
    features: Tensor
    """What it sees them by (N, F)."""

    @classmethod
    def of(cls, model: Judge, data: CaptionedImages) -> "Reference":
        scores, features = judge(model, data.images)
        return cls(model, data, scores.argmax(dim=1), features)

    @property
    def classes(self) -> int:
        return len(self.data.classes)


def reference_section(reference: Reference, train: CaptionedImages, n: int, seed: int) -> Section:
    """The judge's accuracy on real images; and its distances from n training images per class, and from noise.

    The former are the floor that samples can reach. Where the training images have no classes they are any.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(train), generator=generator)
    if train.classes:
        labels = train.labels[rows]
        rows = torch.cat([first(rows[labels == c], n) for c in range(reference.classes)])
    real = train.images[rows[: n * reference.classes]]
    noise = torch.randint(0, 256, real.shape, dtype=torch.uint8, generator=generator)
    return Section(
        {
            "classifier_accuracy": share(reference.predicted == reference.data.labels),
            "floor": distances(judge(reference.judge, real)[1], reference),
            "noise": distances(judge(reference.judge, noise)[1], reference),
            "test_images": len(reference.data),
        }
    )


def distances(features: Tensor, reference: Reference) -> dict[str, Any]:
    """How far images of these features (N, F) are from the test images.

    The Frechet distance is that to all of them; precision and recall are taken against N of them.
    """
    generator = torch.Generator().manual_seed(0)
    resampled = [torch.randint(len(features), (len(features),), generator=generator) for _ in range(10)]
    frechet = torch.tensor([frechet_distance(features[rows], reference.features) for rows in resampled])
    real = reference.features[torch.randperm(len(reference.data), generator=generator)[: len(features)]]
    return {
        "frechet": frechet_distance(features, reference.features),
        "frechet_bootstrap_deviation": frechet.std().item(),
        "precision": share(coverage(features, real)),
        "recall": share(coverage(real, features)),
        "n": len(features),
    }


def first(rows: Tensor, n: int) -> Tensor:
    """The first n rows; again from the start where there are fewer."""
    return rows[torch.arange(n) % len(rows)]


def memorisation_section(samples: np.ndarray, train: CaptionedImages, reference: Reference, seed: int) -> Section:
    """Distances to the nearest training image: of samples uint8 (N, H, W, C), and of as many test images."""
    images = torch.from_numpy(samples).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(reference.data), generator=generator)[: len(images)]
    (_, of_samples), (_, of_train) = (judge(reference.judge, part) for part in (images, train.images))
    spaces = {
        "pixels": (flat(images), flat(reference.data.images[chosen]), flat(train.images)),
        "features": (of_samples, reference.features[chosen], of_train),
    }
    figures = {}
    for space, (ours, test, real) in spaces.items():
        apart, rows = nearest(ours, real)
        of_test, _ = nearest(test, real)
        figures[space] = {
            "samples_median": apart.median().item(),
            "test_median": of_test.median().item(),
            "samples_below_test_1st_percentile": share((apart < of_test.quantile(0.01)).flatten()),
        }
        if space == "pixels":
            closest = apart[:, 0].argsort()[:8]
            copied = train.images[rows[closest, 0]].permute(0, 2, 3, 1).numpy()
    pairs = [("the samples closest to a training image", samples[closest.numpy()]), ("the training images", copied)]
    return Section(figures, {"memorisation": captioned_grid(pairs)})


def flat(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float (N, C H W) in 0 .. 1."""
    return images.flatten(1).float() / 255


def inception_fid(generated: np.ndarray, real: Tensor, device: torch.device) -> dict[str, Any]:
    """Standard FID by torch-fidelity, where it is installed and its Inception weights are on this machine.

    Otherwise {"missing": what}: nothing is downloaded. The images are uint8 (N, H, W, C) and (M, C, H, W).
    """
    try:
        from torch_fidelity import calculate_metrics
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        return {"missing": "torch-fidelity is not installed"}
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if not weights.is_file():
        return {"missing": f"torch-fidelity's weights, {weights.name}, are not in PyTorch's cache"}
    pair = (images.expand(-1, 3, -1, -1) for images in (torch.from_numpy(generated).permute(0, 3, 1, 2), real))
    first, second = (Subset(images, range(len(images))) for images in pair)  # torch-fidelity takes data sets alone
    on_gpu = device.type == "cuda"
    figures = calculate_metrics(input1=first, input2=second, fid=True, cuda=on_gpu, verbose=False, save_cpu_ram=True)
    return {"value": figures["frechet_inception_distance"], "n": len(generated)}
