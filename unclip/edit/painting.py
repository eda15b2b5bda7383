"""Inpainting: paint a part of an image, and leave the rest untouched."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unclip.arguments import Captions, captions_per_image, samples_each
from unclip.devices import inference
from unclip.drawing import as_array, batches
from unclip.edit.defaults import PAINTING, check_settings
from unclip.edit.image_inputs import OneImage, Pictures, prepare_images, prepare_mask
from unclip.edit.interpolation import slerp
from unclip.edit.inversion import require_ability
from unclip.errors import UserError
from unclip.images import to_float
from unclip.interfaces import CanInpaint
from unclip.outputs import Output
from unclip.pipeline import UnCLIP
from unclip.settings import MAX_SEED, seed_list

CANDIDATES = 16
"""Embeddings that the prior draws for a caption; the one closest to the image's own embedding is kept."""
TURN = 1 / 3
"""How far that embedding is then turned towards the image's own, so that the painted part matches the rest."""


@inference()
def inpaint(
    pipe: UnCLIP,
    images: Pictures,
    mask: OneImage,
    captions: Captions | None = None,
    n: int = 1,
    seed: int = 0,
    **settings: Any,
) -> Output:
    """Paint n versions of each image where the mask is True; all other pixels stay, bit for bit, as prepared.

    Args:
        mask: see `prepare_mask`.
        captions: what the whole image shows, one caption for each image or one for all. The prior draws 16 embeddings
            of the caption; the one closest to the image's own is kept, and turned towards it by a third: so a dark shoe
            gets the dark half of a boot. With None the image's own embedding is used, and the part varies.
        seed: version i of every image uses seed + i.
    """
    check_settings(pipe, "inpaint" if captions is None else "inpaint with a caption", settings)
    decoder = require_ability(pipe, CanInpaint, "inpaint images")
    prepared = prepare_images(pipe, images)
    mask = prepare_mask(pipe, images, mask)
    if not mask.any():
        warnings.warn("the mask selects no pixel, so nothing is painted", stacklevel=2)
    sampling = pipe.sampling.override(**PAINTING | settings)
    if sampling.decoder.sampler != "ddpm":
        raise UserError(f"inpaint draws with the ddpm sampler, not with {sampling.decoder.sampler}; leave sampler out")
    if "num_candidates" in settings:
        raise UserError("inpaint draws each image once; leave num_candidates out")
    per_image = captions_per_image(captions, len(prepared))
    repeated = [caption for caption in per_image for _ in range(samples_each(n, len(prepared)))]
    seeds = seed_list(seed, n) * len(prepared)
    embeddings = pipe.encode_image(prepared).repeat_interleave(n, dim=0)
    if captions is not None:
        closest = draw_closest_embeddings(pipe, repeated, seeds, embeddings, **settings)
        embeddings = slerp(closest, embeddings, torch.tensor([TURN], dtype=torch.float32, device="cpu"))[:, 0]
    known = torch.from_numpy(prepared).permute(0, 3, 1, 2).repeat_interleave(n, dim=0)  # (N n, C, H, W)
    mask = mask.repeat_interleave(n, dim=0)  # (N n, 1, H, W)
    text = pipe.encode_captions(repeated)
    painted = []
    for batch in batches(len(seeds), sampling.batch_size):
        pixels = to_float(known[batch]).to(pipe.device)
        where = mask[batch].to(pipe.device)
        painted.append(
            decoder.inpaint_images(pixels, where, embeddings[batch], text[batch], seeds[batch], sampling.decoder)
        )
    inside = mask.permute(0, 2, 3, 1).numpy()
    whole = np.where(inside, as_array(torch.cat(painted)), known.permute(0, 2, 3, 1).numpy())
    noise = pipe.decoder.draw_noise(seeds)
    return Output(whole, repeated, seeds, embeddings, noise, sampling, pipe.origin)


def draw_closest_embeddings(
    pipe: UnCLIP, captions: list[str], seeds: list[int], wanted: Tensor, **settings: Any
) -> Tensor:
    """Draw `CANDIDATES` embeddings for each of N captions, and keep the one closest to wanted (N, D)."""
    candidate_seeds = [(seed * CANDIDATES + i) % MAX_SEED for seed in seeds for i in range(CANDIDATES)]
    repeated = [caption for caption in captions for _ in range(CANDIDATES)]
    drawn = pipe.embed(repeated, seed=candidate_seeds, **{"prior_num_candidates": 1} | settings)
    drawn = drawn.unflatten(0, (-1, CANDIDATES))  # (N, K, D)
    best = torch.einsum("nkd,nd->nk", drawn, wanted).argmax(dim=1)
    return drawn[torch.arange(len(best), device=best.device), best]
