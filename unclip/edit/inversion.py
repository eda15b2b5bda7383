"""Inversion: split images into embeddings and noise, from which the decoder draws them again.

Ramesh et al. 2022, section 3: an image is a pair of its CLIP embedding z, which says what matters in it, and the noise
x_T, which holds the rest. The decoder finds the noise when its sampler runs backwards, given z.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from unclip.arguments import Captions, captions_per_image
from unclip.devices import inference
from unclip.drawing import batches
from unclip.edit.defaults import INVERTIBLE
from unclip.edit.image_inputs import Pictures, prepare_images
from unclip.errors import UserError
from unclip.images import to_float
from unclip.interfaces import CanInvert
from unclip.pipeline import UnCLIP
from unclip.settings import Sampling

Ability = TypeVar("Ability")


@dataclass(frozen=True)
class Latent:
    """N images as embeddings and noise, and the settings that draw them again."""

    embeddings: Tensor
    """Unit image embeddings (N, D): what CLIP sees in the images."""
    noise: Tensor
    """(N, C, H, W): all the rest."""
    captions: tuple[str, ...] = ()
    """N captions for the decoder; empty where it reads none."""
    steps: int = 100
    """Steps of DDIM."""
    guidance: float = 1.0
    """Guidance scale of the decoder."""


def invert(
    pipe: UnCLIP, images: Pictures, captions: Captions | None = None, steps: int = 100, guidance: float = 1.0
) -> Latent:
    """Find the embeddings and the noise of N images by running DDIM backwards (section 3).

    Args:
        captions: captions that the decoder reads too: N, or one for all images, or None for none.
        steps: steps of DDIM, at least 2; `reconstruct` takes as many.
    """
    return invert_with(pipe, images, invertible_sampling(pipe, "invert", steps=steps, guidance=guidance), captions)


@inference()
def invert_with(pipe: UnCLIP, images: Pictures, sampling: Sampling, captions: Captions | None = None) -> Latent:
    """Invert images with the settings of `invertible_sampling`; see `invert`."""
    decoder = require_ability(pipe, CanInvert, "invert images")
    prepared = prepare_images(pipe, images)
    per_image = captions_per_image(captions, len(prepared))
    embeddings = pipe.encode_image(prepared)
    text = pipe.encode_captions(per_image)
    pixels = to_float(torch.from_numpy(prepared).permute(0, 3, 1, 2)).to(pipe.device)
    noise = [
        decoder.invert_images(pixels[batch], embeddings[batch], text[batch], sampling.decoder)
        for batch in batches(len(pixels), sampling.batch_size)
    ]
    read = () if captions is None else tuple(per_image)
    return Latent(embeddings, torch.cat(noise), read, sampling.decoder.steps, sampling.decoder.guidance)


def reconstruct(pipe: UnCLIP, latent: Latent) -> np.ndarray:
    """Draw the images of a `Latent` again, uint8 (N, H, W, C)."""
    return redraw(pipe, latent, latent.embeddings[:, None], latent.noise[:, None])[:, 0]


def redraw(pipe: UnCLIP, latent: Latent, embeddings: Tensor, noise: Tensor, **settings: Any) -> np.ndarray:
    """Draw K images for each of the N images of a `Latent`, with its captions and settings.

    Args:
        embeddings: (N, K, D).
        noise: (N, K, C, H, W), or (N, 1, C, H, W) for the same noise K times.
        settings: those of the edit that do not stand in the `Latent`: of the upsampler, and `batch_size`.

    Returns:
        uint8 (N, K, H, W, C).
    """
    count = embeddings.shape[1]
    captions = [caption for caption in latent.captions for _ in range(count)] or None
    noise = noise.expand(-1, count, -1, -1, -1).flatten(0, 1)
    settings = INVERTIBLE | settings | {"steps": latent.steps, "guidance": latent.guidance}
    images = pipe.decode(embeddings.flatten(0, 1), captions, seed=[0] * len(noise), noise=noise, **settings)
    return images.reshape(-1, count, *images.shape[1:])


def invertible_sampling(pipe: UnCLIP, edit: str, **settings: Any) -> Sampling:
    """The pipeline's settings, changed for an edit that keeps the image's own noise.

    Raises UserError for settings other than steps and guidance, as only DDIM without noise runs backwards.
    """
    if others := set(settings) & {"style", "guidance_interval", "spacing", "num_candidates"}:
        raise UserError(f"{edit} takes steps and guidance; leave {min(others)} out")
    sampling = pipe.sampling.override(**INVERTIBLE | settings)
    if sampling.decoder.sampler != "ddim" or sampling.decoder.eta:
        raise UserError(f"{edit} runs the ddim sampler backwards, without noise; leave sampler and eta out")
    return sampling


def require_ability(pipe: UnCLIP, protocol: type[Ability], ability: str) -> Ability:
    """The pipeline's decoder. Raises UserError unless it fulfils a protocol; `ability` names it in the message."""
    if not isinstance(pipe.decoder, protocol):
        raise UserError(f"the decoder of this pipeline cannot {ability}; use one whose decoder is of kind diffusion")
    return pipe.decoder
