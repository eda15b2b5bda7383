"""The upsampler beside bicubic and Lanczos filters: on real small images, and on those that the decoder draws.

The judge's network works at the decoder's size. It is made of convolutions, so it also takes large images, and then
looks at their details: its features are the space of the distances here.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stages.evaluation.image_metrics import edge_strength, psnr, ssim
from stages.evaluation.judge import judge_images, judge_levels
from stages.evaluation.metrics import frechet_distance, mean_with_interval
from stages.evaluation.section import EvaluationContext, Section
from unclip.grids import captioned_grid
from unclip.images import to_float, to_uint8
from unclip.settings import UpsamplerSettings
from unclip.upsampler.resizing import resize

MOST_IMAGES = 400
"""The most images of a figure."""
TOGETHER = 10
"""Images that are enlarged together."""
NOISE = (0.01, 0.03, 0.1, 0.2, 0.4)
"""Noise levels on the small images that are compared: the setting upscale_noise."""
SHOWN = 8
"""Rows in the pictures."""


def measure_upsampling(context: EvaluationContext) -> Section:
    """Measure the upsampler on real images, and the decoder's images that it enlarges."""
    settings = replace(context.pipe.sampling.upsampler, upscale="all")
    real = context.large.test.images[:MOST_IMAGES]
    size = real.shape[-1]
    low_size = context.reference.data.image_size
    small = to_uint8(resize(to_float(real), low_size, low_size))
    embeddings = context.embedded_test.embeddings[:MOST_IMAGES]
    reference = judge_features(context, context.large.train.images)
    enlarged = {
        "upsampler": enlarge(context, settings, small, embeddings),
        "bicubic": to_uint8(resize(to_float(small), size, size)),
        "lanczos": lanczos(small, size),
    }
    figures = {name: compare(context, images, real, reference) for name, images in enlarged.items()}
    figures["real"] = {"frechet": frechet_distance(judge_features(context, real), reference)}
    shares = {
        "feature_distance": figures["upsampler"]["feature_distance"]["value"]
        / figures["bicubic"]["feature_distance"]["value"],
        "frechet": figures["upsampler"]["frechet"] / figures["bicubic"]["frechet"],
    }

    drawn = context.pipeline_samples
    drawn_small = torch.from_numpy(drawn.images[:MOST_IMAGES]).permute(0, 3, 1, 2)
    drawn_embeddings = drawn.embeddings[:MOST_IMAGES]
    bicubic = to_uint8(resize(to_float(drawn_small), size, size))
    distances = {"bicubic": frechet_distance(judge_features(context, bicubic), reference)}
    by_noise = {}
    for noise in NOISE:
        noisier = replace(settings, upscale_noise=noise)
        by_noise[noise] = enlarge(context, noisier, drawn_small, drawn_embeddings)
        distances[f"noise {noise:g}"] = frechet_distance(judge_features(context, by_noise[noise]), reference)

    began = time.perf_counter()
    enlarge(context, settings, small[:TOGETHER], embeddings[:TOGETHER])
    seconds = (time.perf_counter() - began) / len(small[:TOGETHER])
    captions = list(context.reference.data.captions)
    shown = torch.arange(min(SHOWN, len(real)))
    names = [captions[i] for i in context.reference.data.draw(shown, torch.Generator().manual_seed(0))]
    return Section(
        {
            "real images, made small and enlarged again": figures,
            "share of bicubic's": shares,
            "Frechet distance of the decoder's images, enlarged": distances,
            "seconds per image": seconds,
        },
        {
            "upsampling": grid(names, {"small": nearest(small, size), **without(enlarged, "lanczos"), "real": real}),
            "upsampling-noise": grid(
                list(context.captions)[:SHOWN],
                {"bicubic": bicubic, **{f"noise {noise:g}": images for noise, images in by_noise.items()}},
                context.samples_per_caption,
            ),
        },
        {f"upsampling: {name}": images.numpy() for name, images in enlarged.items()},
    )


def enlarge(context: EvaluationContext, settings: UpsamplerSettings, small: Tensor, embeddings: Tensor) -> Tensor:
    """Enlarge uint8 images (N, C, h, w), with embeddings (N, D), as the pipeline does; image i has `seed + i`."""
    upsampler = context.pipe.image_parts["upsampler"]
    device = context.pipe.device
    parts = []
    for rows in torch.arange(len(small)).split(TOGETHER):
        seeds = [context.seed + row for row in rows.tolist()]
        images = to_float(small[rows].to(device))
        large = upsampler.process_images(images, embeddings[rows].to(device), None, seeds, settings)
        parts.append(to_uint8(large).cpu())
    return torch.cat(parts)


def judge_features(context: EvaluationContext, images: Tensor) -> Tensor:
    """Return the judge's features (N, F) of large images."""
    return judge_images(context.reference.judge, images, batch_size=50)[1]


def compare(context: EvaluationContext, images: Tensor, real: Tensor, reference: Tensor) -> dict[str, Any]:
    """Compare enlarged uint8 images with the real ones, and with the features of many real ones."""
    drawn = to_float(images)
    wanted = to_float(real)
    distance = torch.cat(
        [feature_distance(context, *part) for part in zip(images.split(50), real.split(50), strict=True)]
    )
    return {
        "psnr": mean_with_interval(psnr(drawn, wanted)),
        "ssim": mean_with_interval(ssim(drawn, wanted)),
        "feature_distance": mean_with_interval(distance),
        "frechet": frechet_distance(judge_features(context, images), reference),
        "edges": (edge_strength(drawn).mean() / edge_strength(wanted).mean()).item(),
    }


def feature_distance(context: EvaluationContext, images: Tensor, real: Tensor) -> Tensor:
    """Return the distance (N,) of the judge's features, at each pixel of each level made unit vectors.

    Zhang et al. 2018, arXiv 1801.03924, eq. 1, without learned weights.
    """
    total = torch.zeros(len(images))
    levels = zip(*(judge_levels(context.reference.judge, part) for part in (images, real)), strict=True)
    for a, b in levels:
        difference = F.normalize(a, dim=1) - F.normalize(b, dim=1)
        total += difference.square().sum(dim=1).mean(dim=(1, 2))
    return total


def lanczos(small: Tensor, size: int) -> Tensor:
    """Enlarge uint8 images (N, C, h, w) by Pillow's Lanczos filter."""
    images = []
    for image in small.permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        large = np.array(picture.resize((size, size), Image.Resampling.LANCZOS))
        images.append(torch.from_numpy(large.reshape(size, size, -1)))
    return torch.stack(images).permute(0, 3, 1, 2)


def nearest(small: Tensor, size: int) -> Tensor:
    return F.interpolate(small.float(), size=(size, size), mode="nearest").byte()


def without(columns: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {other: images for other, images in columns.items() if other != name}


def grid(names: list[str], columns: dict[str, Tensor], step: int = 1) -> Image.Image:
    """A picture with a row per name, of every step-th image, and a column per way to enlarge."""
    stacked = torch.stack(list(columns.values()), dim=1)[::step].permute(0, 1, 3, 4, 2).numpy()
    return captioned_grid(list(zip(names, stacked, strict=False)), columns=list(columns))
