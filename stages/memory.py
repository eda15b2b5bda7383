"""Whether a model can be trained here at all, from arithmetic, before anything is read or allocated."""

import os
from collections.abc import Callable

import torch
from torch import nn

from stages import runtime
from unclip.errors import UserError

WIDTHS = {"embed_dim": 64, "text_width": 64}
"""Stand for what the data or the frozen CLIP will tell."""
COPIES = 5
"""Of each weight while it is trained, in float32: itself, its average, its gradient and the optimiser's two moments."""


def check_fits(build: Callable[[], nn.Module], device: torch.device, shared: bool = False) -> None:
    """Raise UserError if what `build` makes, here without memory, cannot be trained in the device's.

    Where the weights are `shared` out, each rank holds a part of them.
    """
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build().parameters())
    needed, there = 4 * COPIES * count / (runtime.world_size() if shared else 1), memory(device)
    if needed > there:
        raise UserError(
            f"a model of {count:.2g} parameters takes at least {needed / 1e9:.3g} GB to train, but {device} has "
            f"{there / 1e9:.3g} GB; lower the widths or the numbers of layers among the options --model"
        )


def memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
