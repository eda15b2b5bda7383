"""Weights, their gradients, the optimiser's moments and the average, shared out among the ranks: FSDP2.

A shared-out tensor is a DTensor: each rank holds some of its rows. Weights on disk, validation and Muon need whole
tensors and gather them here; plain tensors pass through unchanged.
"""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from stages import runtime


def shard(objective: nn.Module, device: torch.device) -> nn.Module:
    """Share the objective's weights out, each member of a module list by itself, and the rest together.

    The ranks gather the weights of a block only while it computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # seconds, which other trainings need not wait

    # blocks return keys and values as views; nothing here changes a returned tensor in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (runtime.world_size(),))
    for module in list(objective.modules()):
        for block in module if isinstance(module, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    return fully_shard(objective, mesh=mesh)


def is_shared(tensor: Any) -> bool:
    """Whether it is a DTensor, whose class is imported with FSDP."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Any:
    """All rows of a tensor; anything else as it is. All ranks must call it."""
    return tensor.full_tensor() if is_shared(tensor) else tensor


def own_share(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor that is shared out; any other as it is."""
    return tensor.to_local() if is_shared(tensor) else tensor


def alike(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor in the other's order in memory, or shared out as the other is."""
    if is_shared(other):
        from torch.distributed.tensor import distribute_tensor

        # a source of None: each rank has the whole, so nothing is sent
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
    return torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


@torch.no_grad()
def share_out(average: nn.Module, model: nn.Module) -> None:
    """Share the average's weights out as the model's are. It cannot compute then, but be averaged and made whole."""
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    replace_weights(average, [alike(weight, example) for weight, example in pairs])
    average.to(next(model.parameters()).device)


@torch.no_grad()
def made_whole(module: nn.Module, wanted: bool = True) -> nn.Module:
    """A copy of a module with all of its weights; a module that is not shared out itself. All ranks must call it.

    Args:
        wanted: whether this rank needs the copy. If not, it holds one whole weight at a time, and returns the module.
    """
    weights = list(module.parameters())
    if not any(map(is_shared, weights)):
        return module
    gathered = [weight if wanted else None for weight in map(whole, weights)]
    if not wanted:
        return module
    copied = copy.deepcopy(module)
    replace_weights(copied, gathered)
    return copied


def replace_weights(module: nn.Module, weights: list[Tensor]) -> None:
    """Put others in the place of a module's parameters, in their order."""
    for (name, old), new in zip(list(module.named_parameters()), weights, strict=True):
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(new, requires_grad=old.requires_grad))


@torch.no_grad()
def fill(module: nn.Module, plain: nn.Module) -> None:
    """Take over the values of a plain module."""
    for target, source in zip(
        (*module.parameters(), *module.buffers()), (*plain.parameters(), *plain.buffers()), strict=True
    ):
        target.copy_(alike(source, target))
