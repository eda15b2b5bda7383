"""Changes by text: move images from one caption towards another."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.arguments import caption_list
from unclip.devices import inference
from unclip.edit.defaults import DEFAULTS, check_settings
from unclip.edit.image_inputs import Pictures
from unclip.edit.interpolation import slerp
from unclip.edit.inversion import invert_with, invertible_sampling, redraw
from unclip.errors import UserError
from unclip.interfaces import MapsText
from unclip.pipeline import UnCLIP

Space = Literal["image", "text"]
LEAN = 0.5
"""Weight of the second text itself in the direction of a change. More keeps the class of more images, and changes fewer
of them."""


def change(
    pipe: UnCLIP,
    images: Pictures,
    before: str,
    after: str,
    amounts: Sequence[float] = (0, 0.25, 0.5),
    space: Space = "image",
    **settings: Any,
) -> np.ndarray:
    """Move images from the text `before` towards the text `after`, with their own noise (section 3.3, figure 5).

    Args:
        amounts: K shares, from 0 to 1, of the turn from the image's embedding to the direction of the change. 0
            reconstructs the image; at 1 nothing of its embedding is left. The paper goes to 0.25 or 0.5.
        space: where the direction is taken, see `text_difference`.
        settings: steps and guidance, which inversion and drawing share; batch_size; and those of an upsampler.

    Returns:
        uint8 (N, K, H, W, C).
    """
    turns = torch.tensor([float(amount) for amount in amounts], dtype=torch.float32, device="cpu")
    if len(turns) == 0 or not ((turns >= 0) & (turns <= 1)).all():
        raise UserError(f"amounts must lie between 0 and 1, not {turns.tolist()}")
    check_settings(pipe, "change", settings)
    direction = text_difference(pipe, before, after, space)
    settings = {"guidance": DEFAULTS["change"]["guidance"]} | settings
    latent = invert_with(pipe, images, invertible_sampling(pipe, "change", **settings))
    embeddings = slerp(latent.embeddings, direction.expand_as(latent.embeddings), turns)
    return redraw(pipe, latent, embeddings, latent.noise[:, None], **settings)


@inference()
def text_difference(pipe: UnCLIP, before: str, after: str, space: Space = "image") -> Tensor:
    """The unit direction (1, D) in which an embedding moves from the text `before` to the text `after`.

    In the space "text" it is the difference of the text embeddings (section 3.3). But texts and images lie in two
    separate regions of CLIP's space (Liang et al. 2022), and an image that moves along a direction between texts loses
    its class. In the space "image" the prior's linear map, where the prior has one, first maps both texts to image
    embeddings. The difference then leans towards `after` itself, as the image loses what it was the further it turns,
    and the rest of what `after` says fills the gap.
    """
    embeddings = pipe.encode_text(caption_list([before, after]))
    prior = pipe.prior if space == "image" and isinstance(pipe.prior, MapsText) else None
    if prior is not None:
        embeddings = prior.map_text(embeddings)
    difference = embeddings[1:] - embeddings[:1]
    if difference.norm() < 1e-6:
        raise UserError(f"{before!r} and {after!r} are the same to CLIP, so there is nothing to change")
    direction = F.normalize(difference, dim=1)
    if prior is None:
        return direction
    return F.normalize(direction + LEAN * F.normalize(embeddings[1:], dim=1), dim=1)
