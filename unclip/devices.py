"""Pick the device to run on."""

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


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter."""
    return next(model.parameters()).device
