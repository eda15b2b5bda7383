"""Draw image embeddings from the prior by diffusion."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from unclip.prior.model import Prior
from unclip.samplers import PRIOR_STREAM, RowNoise, dpmpp, guided, spaced_timesteps
from unclip.settings import Sampling


@torch.inference_mode()
def draw_embeddings(
    prior: Prior,
    text: Tensor,
    encodings: Tensor,
    mask: Tensor,
    rows: Tensor,
    seeds: Sequence[int],
    sampling: Sampling,
    drop: Tensor | None = None,
) -> Tensor:
    """One unit image embedding a sample, (N, D).

    Of `sampling.draws` candidates the one with the highest dot product with the text embedding is kept (Ramesh et al.
    2022, section 2.2, which draws two).

    Args:
        text, encodings, mask: U distinct captions as CLIP reads them: (U, D), (U, L, W), (U, L).
        rows: (N,) which caption each sample has.
        seeds: N seeds.
        drop: (U,), True for a caption that stands for none; its first candidate is kept.
    """
    drop = torch.zeros(len(text), dtype=torch.bool, device=text.device) if drop is None else drop
    prefix = prior.prefix(text, encodings, mask, drop)
    guidance = sampling.prior_guidance
    nulls = prior.prefix(text, encodings, mask, torch.ones_like(drop)) if guidance != 1 else None
    diffusion = prior.diffusion()
    timesteps = spaced_timesteps(diffusion.timesteps, sampling.prior_steps, "prior_steps")
    kept = []
    for start in range(0, len(rows), sampling.batch_size):
        part = slice(start, start + sampling.batch_size)
        own = prefix.repeat(rows[part])
        if nulls is None:
            model = partial(prior, prefix=own)
        else:
            model = guided(partial(prior, prefix=own.join(nulls.repeat(rows[part]))), guidance)
        candidates = []
        for draw in range(sampling.draws):
            noise = RowNoise(seeds[part], PRIOR_STREAM, draw)
            x = noise(text[rows[part]])
            x = dpmpp(diffusion.denoiser(model), x, diffusion, timesteps, noise)
            candidates.append(prior.scaler.unscale(x))
        candidates = torch.stack(candidates, dim=1)  # (B, draws, D)
        best = torch.einsum("bnd,bd->bn", candidates, text[rows[part]]).argmax(dim=1)
        best = torch.where(drop[rows[part]], 0, best)
        kept.append(candidates[torch.arange(len(best), device=best.device), best])
    return torch.cat(kept)
