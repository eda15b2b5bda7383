"""The memory of training: whether there is enough, before anything is read or allocated, and how to need less."""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stages import runtime
from unclip.decoder.unet import UNetLayer
from unclip.errors import UserError
from unclip.layers import Block
from unclip.store.parts import WithoutInitialWeights

WIDTHS = {"embed_dim": 64, "text_width": 64}
"""Stand for what the data or the frozen CLIP will tell."""
COPIES = 5
"""Numbers in float32 for each weight in training: itself, its average, its gradient and the optimiser's two moments."""


def check_fits(build: Callable[[], nn.Module], device: torch.device, shared: bool = False) -> None:
    """Raise UserError if what `build` makes, here without memory, cannot be trained in the device's.

    Where the weights are `shared` out, each rank holds a part of them.
    """
    with torch.device("meta"), WithoutInitialWeights():
        count = sum(parameter.numel() for parameter in build().parameters())
    needed = 4 * COPIES * count / (runtime.world_size() if shared else 1)
    available = memory(device)
    if needed > available:
        raise UserError(
            f"a model of {count:.2g} parameters takes at least {needed / 1e9:.3g} GB to train, but {device} has "
            f"{available / 1e9:.3g} GB; lower the widths or the numbers of layers among the options --model"
        )


def recompute(model: nn.Module) -> None:
    """Let each block keep its input alone, and compute the rest again in the backward pass (Chen et al. 2016)."""
    for block in repeated_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer's blocks and the UNet's layers, which do most of the work, and are recomputed or compiled."""
    return [module for module in model.modules() if isinstance(module, (Block, UNetLayer))]


def compile_blocks(model: nn.Module, **options) -> None:
    """Compile each block when it is first called, with these options of torch.compile.

    Blocks of one shape share what is compiled, so a network costs little more than one block of each shape.
    """
    torch._dynamo.config.recompile_limit = 64  # widths, lengths, with and without a mask or past: each its own code
    for block in repeated_blocks(model):
        block.compile(**options)


def memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
