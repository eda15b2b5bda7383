"""Where we run: device, precision, and ranks.

With sharding.py, sharded_state.py, roll_call.py and heartbeat.py all that knows of torch.distributed.
"""

import contextlib
import ctypes
import functools
import inspect
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives

from stages import heartbeat, roll_call
from unclip.devices import Device, pick_device
from unclip.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are fast: on CUDA, and on CPUs with AMX or AVX512-BF16.

    Other CPUs emulate them, which is far slower.
    """
    if device.type != "cpu":
        return device.type == "cuda"
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private, and not in every version
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)


def autocast(device: torch.device, precision: Precision):
    """bfloat16 for convolutions and linear layers where the device is fast at it; float32 elsewhere."""
    if precision == "bfloat16" or (precision == "auto" and fast_bfloat16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def start(wanted: Device) -> torch.device:
    """Pick the device, and join the process group if torchrun started us. Raises UserError on Windows."""
    if sys.platform == "win32":
        raise UserError("training needs Linux or macOS; on Windows, train within WSL")
    device = pick_device(wanted)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            raise UserError(f"rank {device.index} has no GPU of its own: there are {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 where autocast leaves float32
        torch.backends.cudnn.benchmark = True  # batches have one shape
    if "RANK" in os.environ and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        patience = timedelta(hours=2)  # the others wait while one downloads and embeds
        store, rank, ranks = roll_call.meet(patience)
        dist.init_process_group(backend, timeout=patience, store=store, rank=rank, world_size=ranks)
        heartbeat.start()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation.

    Else it returns the memory of large tensors to the system, which fills it with zeros when it is asked for it again:
    a tenth of a step's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


M_TRIM_THRESHOLD = -1  # as in malloc.h
M_MMAP_MAX = -4


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
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
    engine = nn.parallel.DistributedDataParallel
    names = ("forward_sync_buffers", "broadcast_buffers")  # the second is what PyTorch called it before 2.13
    known = inspect.signature(engine).parameters
    options = {next(name for name in names if name in known): False}
    return engine(objective, gradient_as_bucket_view=True, **options)  # means are not copied back


def gradients_meet(objective: nn.Module, now: bool):
    """Whether the ranks average the gradients in the block, or DistributedDataParallel leaves them to a later one."""
    waits = isinstance(objective, nn.parallel.DistributedDataParallel) and not now
    return objective.no_sync() if waits else contextlib.nullcontext()


def gather(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all ranks, (ranks * n, ...), the first rank's first; a gradient goes back to each its own.

    The gradient that a rank gets is the sum of what all ranks' losses say of its rows. All ranks must call it.
    """
    if world_size() == 1:
        return rows
    # the second is its name before PyTorch 2.13
    function = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
    gathered = function(rows.contiguous(), 0, dist.group.WORLD)
    if gathered.requires_grad:  # the collective reads a gradient's memory in order, whatever its strides
        gathered.register_hook(Tensor.contiguous)
    return gathered


def gather_on_cpu(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all ranks, which are on the CPU, (ranks * n, ...). All ranks must call it."""
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous(), group=_cpu_group())
    return torch.cat(gathered)


@functools.cache
def _cpu_group() -> dist.ProcessGroup:
    """All ranks, on an engine that moves tensors of the CPU; its own, as a thread may use it beside the steps."""
    return dist.new_group(backend="gloo")


def gather_values(value: Any) -> list[Any]:
    """The values of all ranks, of any type, the first rank's first. All ranks must call it."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def in_shares(function: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor) -> list[Tensor]:
    """Call a function of row indices (N,), of which each rank computes a share.

    Every rank takes as many, the last some of them twice, and gets the results of all. All ranks must call it.
    """
    share = -(-len(rows) // world_size())
    rank_rows = torch.arange(rank() * share, (rank() + 1) * share).clamp(max=len(rows) - 1)
    return [gather(result)[: len(rows)] for result in function(rows[rank_rows])]


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
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return (total / world_size()).tolist()


@contextlib.contextmanager
def seeded(seed: int):
    """Run the block with PyTorch's own random numbers seeded, as initialisers use no others; then put them back."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        yield
