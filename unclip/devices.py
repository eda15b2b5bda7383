"""Pick the device to run on, and compute on it the same way whatever else the process has set."""

import contextlib
from collections.abc import Iterator
from typing import get_args

import torch
from torch import nn

from unclip.errors import UserError
from unclip.settings import Device


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


@contextlib.contextmanager
def inference() -> Iterator[None]:
    """Compute without gradients, and outside of any autocast around it: pictures by seed do not depend on it.

    Results are ordinary tensors, which other models can be trained on; those of `torch.inference_mode` are not.
    """
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for device in get_args(Device):
            if device != "auto" and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter."""
    return next(model.parameters()).device
