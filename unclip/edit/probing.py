"""Look inside: what the components of an embedding hold, and how noise covers an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.devices import inference
from unclip.diffusion.noise import RowNoise
from unclip.drawing import as_array
from unclip.edit.defaults import DEFAULTS, check_settings
from unclip.edit.image_inputs import Pictures, prepare_images
from unclip.edit.inversion import require_ability
from unclip.errors import UserError
from unclip.images import to_float
from unclip.interfaces import CanDenoise
from unclip.pipeline import UnCLIP
from unclip.settings import seed_list

REFERENCE: dict[str, Any] = {"n": 512, "prior_num_candidates": 1, "prior_steps": 10, "prior_guidance": 1.0}
"""How the embeddings are drawn whose principal axes `probe` takes by default."""


@inference()
def probe(
    pipe: UnCLIP,
    images: Pictures,
    components: Sequence[int] = (0, 5, 20, 80),
    seed: int = 0,
    reference: Tensor | None = None,
    **settings: Any,
) -> np.ndarray:
    """Draw images from the first principal components of their embeddings (section 4, figure 7).

    Args:
        components: K numbers of components to keep. 0 leaves the mean of all embeddings, D or more the whole embedding.
        seed: seed of the noise, the same for all images.
        reference: embeddings (M, D) whose principal axes are taken. By default the prior draws them without a caption,
            so that they follow the embeddings of its training images.

    Returns:
        uint8 (N, K, H, W, C).
    """
    if not components or any(count != int(count) or count < 0 for count in components):
        raise UserError(f"components must be whole numbers of at least 0, not {components}")
    check_settings(pipe, "probe", settings)
    embeddings = pipe.encode_image(prepare_images(pipe, images))
    if reference is None:
        reference = pipe.embed("", **REFERENCE)
    mean, axes = principal_axes(reference)
    mean = mean.to(embeddings)
    axes = axes.to(embeddings)
    projected = [(embeddings - mean) @ axes[: int(k)].T @ axes[: int(k)] + mean for k in components]
    projected = F.normalize(torch.stack(projected, dim=1), dim=2)  # (N, K, D)
    seeds = [seed] * (len(embeddings) * len(components))
    drawn = pipe.decode(projected.flatten(0, 1), seed=seeds, **DEFAULTS["probe"] | settings)
    return drawn.reshape(len(embeddings), len(components), *drawn.shape[1:])


def principal_axes(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and principal axes (D, D) of embeddings (M, D); one axis per row, the widest first."""
    embeddings = embeddings.cpu().double()  # not every device has float64
    mean = embeddings.mean(dim=0)
    _, axes = torch.linalg.eigh((embeddings - mean).T @ (embeddings - mean))
    return mean.float(), axes.T.flip(0).float().contiguous()


@dataclass(frozen=True)
class Corrupted:
    """N images at K times of the forward process."""

    times: list[float]
    """K times t, from nearly clean (0) to pure noise (1)."""
    noised: np.ndarray
    """x_t, uint8 (N, K, H, W, C), clipped to the range of pixels."""
    predicted: np.ndarray
    """The clean image that the decoder predicts from x_t and the embedding in one step, uint8 (N, K, H, W, C)."""


@inference()
def corrupt(pipe: UnCLIP, images: Pictures, times: int = 10, seed: int = 0) -> Corrupted:
    """Noise images at `times` evenly spaced times (Ho et al. 2020, eq. 4), and predict them again in one step."""
    decoder = require_ability(pipe, CanDenoise, "predict images from noised ones")
    if times < 1:
        raise UserError(f"times must be at least 1, not {times}")
    prepared = prepare_images(pipe, images)
    process = decoder.process
    levels = [process.level(t) for t in process.spread_times(times)]
    x0 = to_float(torch.from_numpy(prepared).permute(0, 3, 1, 2)).to(pipe.device)
    noise = RowNoise(seed_list(seed, 1) * len(x0))(x0)
    text = pipe.encode_captions([""] * len(x0))
    denoise = decoder.denoiser(pipe.encode_image(prepared), text, pipe.sampling.override(guidance=1.0).decoder)
    noised = [level.alpha * x0 + level.sigma * noise for level in levels]
    predicted = [denoise(x, level).x0 for x, level in zip(noised, levels, strict=True)]
    return Corrupted([level.t for level in levels], stack_moments(noised), stack_moments(predicted))


def stack_moments(images: list[Tensor]) -> np.ndarray:
    """Float (N, C, H, W) at K moments -> uint8 (N, K, H, W, C)."""
    return np.stack([as_array(x) for x in images], axis=1)
