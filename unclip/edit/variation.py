"""Variations: draw again what an image's embedding leaves open."""

import math
from typing import Any

from unclip.arguments import samples_each
from unclip.devices import inference
from unclip.edit.defaults import INVERTIBLE, check_settings
from unclip.edit.image_inputs import Pictures, prepare_images
from unclip.edit.inversion import invert_with, invertible_sampling
from unclip.errors import UserError
from unclip.outputs import Output
from unclip.pipeline import UnCLIP
from unclip.settings import seed_list


@inference()
def vary(pipe: UnCLIP, images: Pictures, n: int = 8, seed: int = 0, keep: float = 0.0, **settings: Any) -> Output:
    """Draw n variations of each image: its embedding stays, the noise changes (section 3.1, figure 3).

    Args:
        seed: variation i of every image uses seed + i.
        keep: share of the image's own noise that stays, from 0 to 1. At 0 all noise is new, and the pipeline draws with
            its own settings. Above 0 the image is inverted, and drawn by DDIM without guidance; 1 reconstructs it.
    """
    if not 0 <= keep <= 1:
        raise UserError(f"keep must lie between 0 and 1, not {keep}")
    check_settings(pipe, "vary with keep" if keep else "vary", settings)
    prepared = prepare_images(pipe, images)
    seeds = seed_list(seed, samples_each(n, len(prepared))) * len(prepared)
    noise = None
    if keep:
        latent = invert_with(pipe, prepared, invertible_sampling(pipe, "vary with keep", **settings))
        embeddings = latent.embeddings
        settings = INVERTIBLE | settings
        new_noise = pipe.decoder.draw_noise(seeds)
        noise = keep * latent.noise.repeat_interleave(n, dim=0) + math.sqrt(1 - keep**2) * new_noise
    else:
        embeddings = pipe.encode_image(prepared)
    embeddings = embeddings.repeat_interleave(n, dim=0)
    drawn, noise = pipe.decode_with_noise(embeddings, seed=seeds, noise=noise, **settings)
    return Output(
        drawn, [""] * len(seeds), seeds, embeddings, noise, pipe.sampling.for_drawing(**settings), pipe.origin
    )
