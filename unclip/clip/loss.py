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
    text_of_image: Tensor,
    scale: Tensor | float,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    rank: int = 0,
) -> Tensor:
    """Symmetric cross-entropy over the *distinct* captions of a batch (InfoNCE with several positives).

    Each image has one right caption among U. Each caption has all images with this caption as its positives, and the
    mean of their log-probabilities among B images counts (Khosla et al. 2020, eq. 2). So equal captions are never each
    other's negatives.

    Several ranks can share a batch. Each then passes b = B / ranks images and u = U / ranks texts, as many as the other
    ranks, and `text_of_image` of the whole batch; the mean of their losses is the loss of the batch. A rank compares
    its own images and texts with those of all ranks, so it holds b U + u B cosines, not B U.

    Args:
        images: unit embeddings (b, D), one per image.
        texts: unit embeddings (u, D), one per distinct caption.
        text_of_image: (B,), index of each image's caption among the U texts. Texts that describe no image are ignored.
        scale: factor on the cosines.
        gather: concatenates the rows of all ranks, the first rank's first, and is differentiable.
        rank: index of this rank.
    """
    per_rank = gather(torch.cat([images, texts])).unflatten(0, (-1, len(images) + len(texts)))  # (ranks, b + u, D)
    image_part, text_part = per_rank.split([len(images), len(texts)], dim=1)
    all_images = image_part.flatten(0, 1)  # (B, D)
    all_texts = text_part.flatten(0, 1)  # (U, D)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round logits near 100 to steps of a half
        image_logits = scale * at_least_float32(images) @ at_least_float32(all_texts).T  # (b, U)
        text_logits = scale * at_least_float32(texts) @ at_least_float32(all_images).T  # (u, B)

    is_used = text_of_image.new_zeros(len(all_texts)).index_fill(0, text_of_image, 1)  # (U,)
    targets = text_of_image[rank * len(images) :][: len(images)]  # (b,)
    image_to_text = F.cross_entropy(image_logits.masked_fill(is_used == 0, -torch.inf), targets)

    text_ids = rank * len(texts) + torch.arange(len(texts), device=texts.device)  # (u,)
    positive = (text_ids[:, None] == text_of_image).to(text_logits.dtype)  # (u, B)
    positive = positive / positive.sum(dim=1, keepdim=True).clamp(min=1)
    ranks = len(all_texts) / len(texts)
    text_to_image = -(positive * text_logits.log_softmax(dim=1)).sum() * ranks / is_used.sum()
    return (image_to_text + text_to_image) / 2


def chance_loss(images: int, captions: int) -> float:
    """The `contrastive_loss` of embeddings that are all equal."""
    return (math.log(captions) + math.log(images)) / 2
