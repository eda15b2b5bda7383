"""Pick the device to run on."""

import torch
from torch import nn

from unclip.errors import UserError
from unclip.settings import Device


def pick_device(wanted: Device) -> torch.device:
    """The device named; for "auto" CUDA if there is one, else Apple's GPU, else the CPU.

    Raises UserError for a device that is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name in present if present[name])
    if not present[wanted]:
        choices = ", ".join(name for name in present if present[name])
        raise UserError(f"device {wanted} is not available here; choose one of {choices}")
    return torch.device(wanted)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
