"""Pick the device to run on, and compute on it the same way whatever else the process has set."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar, get_args

import torch
from torch import Tensor, nn

from unclip.errors import UserError, shown
from unclip.layers import at_least_float32
from unclip.settings import Device

P = ParamSpec("P")
T = TypeVar("T")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of numbers that a pipeline can compute with."""


def pick_device(name: Device) -> torch.device:
    """The device of a name; for "auto" CUDA if there is one, else Apple's GPU, else the CPU.

    Raises UserError for a device that this machine does not have.
    """
    is_available: dict[Device, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    available = [device for device in is_available if is_available[device]]
    if name == "auto":
        name = available[0]
    if name not in available:
        raise UserError(f"device {name} is not available here; choose one of {', '.join(available)}")
    return torch.device(name)


GRADIENTS: ContextVar[bool] = ContextVar("gradients", default=False)
"""Whether gradients are kept where there are none otherwise: see `gradients`."""


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Within the block, what `inference` decorates can be differentiated."""
    token = GRADIENTS.set(True)
    try:
        yield
    finally:
        GRADIENTS.reset(token)


def inference() -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function to compute without gradients, and outside of any autocast around it.

    Pictures by seed do not depend on what the process has set. A method of a part computes in the precision of its
    weights. Results are ordinary tensors, which other models can be trained on; those of `torch.inference_mode` are
    not.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def compute(*args: P.args, **kwargs: P.kwargs) -> T:
            with contextlib.ExitStack() as stack:
                if not GRADIENTS.get():
                    stack.enter_context(torch.no_grad())
                stack.enter_context(without_autocast())
                if args and isinstance(args[0], nn.Module):
                    stack.enter_context(precision_of(args[0]))
                return function(*args, **kwargs)

        return compute

    return decorate


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Within the block, nothing is computed in half precision because of an autocast around it."""
    with contextlib.ExitStack() as stack:
        for device in get_args(Device):
            if device != "auto" and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def precision_of(model: nn.Module) -> Iterator[None]:
    """Within the block, products are computed in the half precision of a model's weights, if they are in one."""
    dtype = weight_dtype(model)
    with contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device_of(model).type, dtype):
        yield


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter."""
    return next(model.parameters()).device


def weight_dtype(model: nn.Module) -> torch.dtype:
    """The half precision of a model's matrices; float32 for any other, and for a model without matrices."""
    matrix = next((parameter for parameter in model.parameters() if parameter.ndim > 1), None)
    return matrix.dtype if matrix is not None and matrix.dtype in DTYPES else torch.float32


def set_weight_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Round a model's matrices to a type of numbers; vectors, such as biases and norms, and buffers stay in float32.

    Raises UserError for a type that is none of `DTYPES`.
    """
    if dtype not in DTYPES:
        names = ", ".join(map(str, DTYPES))
        raise UserError(f"dtype must be one of {names}, not {shown(dtype)}")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(dtype)


def wide(tensor: Tensor) -> Tensor:
    """Floating-point numbers in float32 at least; others as they are."""
    return at_least_float32(tensor) if tensor.is_floating_point() else tensor
