"""Reranking: which of several images that the decoder drew for an embedding is kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unclip.clip.text_features import TextFeatures
from unclip.interfaces import Decoder
from unclip.settings import DecoderSettings, later_seeds


def draw_closest_images(
    decoder: Decoder,
    encode_image: Callable[[Tensor], Tensor],
    embeddings: Tensor,
    text: TextFeatures,
    seeds: Sequence[int],
    settings: DecoderSettings,
    batch_size: int,
) -> tuple[Tensor, list[int]]:
    """Draw several candidates for each image, and keep the one that CLIP embeds closest to its embedding.

    An exact sampler would draw, for an image's embedding, only images that are embedded there. So this choice makes no
    sample more typical, as reranking by the text does; it removes errors that the decoder adds.

    Args:
        encode_image: images (B, C, H, W) in [-1, 1] -> unit embeddings (B, D).
        embeddings, text, seeds, settings: as for `Decoder.draw_images`, N of each.

    Returns:
        Images (N, C, H, W) in [-1, 1], and the seeds that they were drawn with.
    """
    count = len(seeds)
    num_candidates = settings.num_candidates
    seeds = [seed for i in range(num_candidates) for seed in later_seeds(seeds, i)]
    rows = torch.arange(count, device=embeddings.device).repeat(num_candidates)
    images = []
    cosines = []
    for begin in range(0, len(seeds), batch_size):
        part = rows[begin : begin + batch_size]
        part_seeds = seeds[begin : begin + batch_size]
        noise = decoder.draw_noise(part_seeds)
        images.append(decoder.draw_images(embeddings[part], text[part], part_seeds, settings, noise))
        cosines.append((encode_image(images[-1]) * embeddings[part]).sum(dim=1))
    best = torch.cat(cosines).view(num_candidates, count).argmax(dim=0) * count + rows[:count]
    return torch.cat(images)[best], [seeds[i] for i in best.tolist()]
