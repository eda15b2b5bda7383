"""Where we run: device, precision, and ranks. Everything that knows of torch.distributed is in this file."""

import contextlib
import ctypes
import os
import sys
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from unclip import cli
from unclip.devices import Device, pick_device
from unclip.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are fast: on CUDA, and on CPUs with AMX. Other CPUs emulate them, far slower."""
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # private, and not in every version
    return device.type == "cuda" or (device.type == "cpu" and has_amx())


def autocast(device: torch.device, precision: Precision):
    """bfloat16 for convolutions and linear layers where the device is fast at it; float32 elsewhere."""
    if precision == "bfloat16" or (precision == "auto" and fast_bfloat16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def start(wanted: Device) -> torch.device:
    """Pick the device, and join the process group if torchrun started us."""
    device = pick_device(wanted)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            raise UserError(f"rank {device.index} has no GPU of its own: there are {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    if "RANK" in os.environ and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=2))  # the others wait while one downloads and embeds
        cli.is_first = is_first_to_tell
    return device


def keep_freed_memory() -> None:
    """Have glibc keep what is freed. Else it gives large tensors' memory back to the system, which fills it with zeros
    whenever it is asked for it again: a tenth of a step's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def is_first_to_tell() -> bool:
    """Whether no other rank has named an error yet: what goes wrong on one rank ends them all."""
    try:
        return dist.distributed_c10d._get_default_store().add("errors told", 1) == 1
    except RuntimeError:  # the store is gone too
        return rank() == 0


def end() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def print0(message: str) -> None:
    """Print a progress message, once for all ranks."""
    if is_main():
        print(message, file=sys.stderr, flush=True)


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def main_first():
    """Run the block on the main rank before the others, which then find what it downloaded or cached."""
    if not is_main():
        barrier()
    try:
        yield
    finally:  # an error of the main rank must not leave the others waiting
        if is_main():
            barrier()


def distributed(objective: nn.Module) -> nn.Module:
    """The objective such that its gradients are the mean over all ranks; a lone rank's as it is."""
    if world_size() == 1:
        return objective
    return nn.parallel.DistributedDataParallel(objective, broadcast_buffers=False)


def largest(value: int, device: torch.device) -> int:
    """The largest over all ranks. All ranks must call it."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def mean_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """The mean over all ranks of numbers that each has of its own. All ranks must call it."""
    if world_size() == 1:
        return values
    total = torch.tensor(values, device=device)
    dist.all_reduce(total)
    return (total / world_size()).tolist()


@contextlib.contextmanager
def seeded(seed: int):
    """Run the block with PyTorch's own random numbers seeded, as initialisers use no others; then put them back."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        yield
