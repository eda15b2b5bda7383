"""CLIP's contrastive loss (Radford et al. 2021, figure 3), with several positives per caption."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.layers import at_least_float32


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    caption: Tensor,
    scale: Tensor | float,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    rank: int = 0,
) -> Tensor:
    """Symmetric cross-entropy over the *distinct* captions of a batch (InfoNCE, with several positives).

    Args:
        images: unit embeddings (B, D), one per image.
        texts: unit embeddings (U, D), one per distinct caption.
        caption: (B,) the row of `texts` that describes each image. A text that describes none counts for nothing.
        scale: factor on the cosines.
        gather: where several ranks share a batch, the rows of all of them, the first rank's first, differentiably.
            Each then gives b = B / ranks images, u = U / ranks texts, as many as the others, and all of `caption`; the
            mean of the ranks' losses is the batch's. A rank compares its own rows with all, so it holds b U + u B
            cosines, not B U.
        rank: which of them this is.

    An image has one right caption among U. A caption has as positives all images with it: the mean of their
    log-probabilities among B counts (Khosla et al. 2020, eq. 2). Equal strings are so never each other's negatives.
    """
    shares = gather(torch.cat([images, texts])).unflatten(0, (-1, len(images) + len(texts)))  # (ranks, b + u, D)
    all_images, all_texts = (x.flatten(0, 1) for x in shares.split([len(images), len(texts)], dim=1))  # (B, D), (U, D)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round logits near 100 to steps of a half
        of_images = scale * at_least_float32(images) @ at_least_float32(all_texts).T  # (b, U)
        of_texts = scale * at_least_float32(texts) @ at_least_float32(all_images).T  # (u, B)
    described = caption.new_zeros(len(all_texts)).index_fill(0, caption, 1)  # (U,)
    own = caption[rank * len(images) :][: len(images)]  # (b,)
    image_to_text = F.cross_entropy(of_images.masked_fill(described == 0, -torch.inf), own)
    rows = rank * len(texts) + torch.arange(len(texts), device=texts.device)  # (u,)
    positive = (rows[:, None] == caption).to(of_texts.dtype)  # (u, B)
    positive = positive / positive.sum(dim=1, keepdim=True).clamp(min=1)
    ranks = len(all_texts) / len(texts)
    text_to_image = -(positive * of_texts.log_softmax(dim=1)).sum() * ranks / described.sum()
    return (image_to_text + text_to_image) / 2


def chance_loss(images: int, captions: int | Tensor) -> Tensor:
    """`contrastive_loss` of embeddings that tell nothing."""
    return (torch.as_tensor(captions).log() + math.log(images)) / 2
