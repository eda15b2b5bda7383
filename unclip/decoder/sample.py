"""Draw images from the decoder by diffusion."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from unclip.decoder.unet import Decoder
from unclip.samplers import DECODER_STREAM, SAMPLERS, RowNoise, guided, on_interval, spaced_timesteps
from unclip.settings import Sampling


@torch.inference_mode()
def draw_images(
    decoder: Decoder,
    images: Tensor,
    encodings: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    sampling: Sampling,
    drop_image: Tensor | None = None,
    drop_text: Tensor | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Images (N, C, H, W) in [-1, 1].

    Args:
        images: unit image embeddings (N, D).
        encodings, mask: the captions' token encodings (N, L, W), and (N, L) False for padding.
        seeds: N seeds.
        drop_image, drop_text: (N,), True where the learned null takes the place of the embedding, of the caption.
        on_step: called with (t, x_t, predicted x0) at each step of each batch, see unclip/samplers.py.
    """
    none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    rows = [
        images,
        encodings,
        mask,
        none if drop_image is None else drop_image,
        none if drop_text is None else drop_text,
    ]
    config, diffusion = decoder.config, decoder.diffusion()
    timesteps = spaced_timesteps(diffusion.timesteps, sampling.steps)
    sampler = SAMPLERS[sampling.sampler]
    if sampling.sampler == "ddim":
        sampler = partial(sampler, eta=sampling.eta)
    drawn = []
    for start in range(0, len(images), sampling.batch_size):
        part = [tensor[start : start + sampling.batch_size] for tensor in rows]
        batch = len(part[0])
        model = partial(decoder, condition=decoder.condition(*part))
        if sampling.guidance != 1:  # B conditional rows, then the B nulls that belong to them
            nulls = [*part[:3], torch.ones_like(part[3]), torch.ones_like(part[4])]
            both = [torch.cat(pair) for pair in zip(part, nulls, strict=True)]
            both = guided(partial(decoder, condition=decoder.condition(*both)), sampling.guidance)
            model = on_interval(both, model, *(end * (diffusion.timesteps - 1) for end in sampling.guidance_interval))
        noise = RowNoise(seeds[start : start + batch], DECODER_STREAM)
        x = noise(images.new_empty(batch, config.channels, config.image_size, config.image_size))
        drawn.append(sampler(diffusion.denoiser(model, clip_x0=1.0), x, diffusion, timesteps, noise, on_step))
    return torch.cat(drawn)
