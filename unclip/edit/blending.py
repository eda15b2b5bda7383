"""Blends: the way from one image to another."""

from typing import Any

import numpy as np
import torch

from unclip.edit.defaults import check_settings
from unclip.edit.image_inputs import Pictures, is_single_image, prepare_images
from unclip.edit.interpolation import slerp
from unclip.edit.inversion import invert_with, invertible_sampling, redraw
from unclip.errors import UserError, quantity
from unclip.pipeline import UnCLIP


def blend(pipe: UnCLIP, a: Pictures, b: Pictures, frames: int = 8, **settings: Any) -> np.ndarray:
    """Draw the frames from image a to image b; embeddings and noise both follow great circles (section 3.2, figure 4).

    Returns:
        uint8 (frames, H, W, C) for two images, (N, frames, H, W, C) for two lists or arrays of N. The first and the
        last frame are the reconstructions of a and b.
    """
    if frames < 2:
        raise UserError(f"a blend has at least 2 frames, not {frames}")
    check_settings(pipe, "blend", settings)
    first = prepare_images(pipe, a)
    last = prepare_images(pipe, b)
    if len(first) != len(last):
        raise UserError(f"{quantity(len(first), 'image')} cannot be blended with {len(last)}; give as many of each")
    sampling = invertible_sampling(pipe, "blend", **settings)
    latent = invert_with(pipe, np.concatenate([first, last]), sampling)
    amounts = torch.linspace(0, 1, frames, dtype=torch.float32, device="cpu")
    first_embeddings, last_embeddings = latent.embeddings.chunk(2)
    first_noise, last_noise = latent.noise.chunk(2)
    embeddings = slerp(first_embeddings, last_embeddings, amounts)
    noise = slerp(first_noise, last_noise, amounts)
    drawn = redraw(pipe, latent, embeddings, noise, **settings)
    return drawn[0] if is_single_image(a) and is_single_image(b) else drawn
