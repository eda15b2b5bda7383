"""Mixes: images that are part one prompt and part another."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from unclip.arguments import caption_list, samples_each
from unclip.devices import inference
from unclip.edit.defaults import DEFAULTS
from unclip.errors import UserError
from unclip.outputs import Output
from unclip.pipeline import UnCLIP
from unclip.settings import seed_list


@inference()
def mix(pipe: UnCLIP, prompts: Mapping[str, float], n: int = 4, seed: int = 0, **settings: Any) -> Output:
    """Draw n images of weighted prompts.

    For each image the prior draws one embedding per prompt, all with the image's seed. Their weighted mean, put back on
    the unit sphere, is decoded without text. Unless `prior_threshold` is given, the reranker keeps the likeliest
    candidate.

    Args:
        prompts: captions and their weights, at least 0; only the shares of their sum count.
        seed: image i uses seed + i.
    """
    weights = torch.tensor([float(weight) for weight in prompts.values()], dtype=torch.float32, device="cpu")
    if not weights.isfinite().all() or (weights < 0).any() or weights.sum() <= 0:
        weight_list = ", ".join(map(str, prompts.values())) or "none"
        raise UserError(f"weights must be at least 0, and one above, not {weight_list}")
    seeds = seed_list(seed, samples_each(n, 1))
    captions = caption_list(list(prompts))
    settings = DEFAULTS["mix"] | settings
    sampling = pipe.sampling.for_drawing(**settings)
    drawn = pipe.embed(captions, n=n, seed=seed, **settings).unflatten(0, (len(captions), n))  # (P, n, D)
    shares = (weights / weights.sum()).to(drawn)
    embeddings = F.normalize(torch.einsum("pnd,p->nd", drawn, shares), dim=1)
    label = " + ".join(f"{share:.2g} {caption}" for caption, share in zip(captions, shares.tolist(), strict=True))
    images, noise = pipe.decode_with_noise(embeddings, seed=seeds, **settings)
    return Output(images, [label] * n, seeds, embeddings, noise, sampling, pipe.origin)
