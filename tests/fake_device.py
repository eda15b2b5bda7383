"""A device that computes on the CPU and refuses all that Apple's GPUs refuse, so that tests need no such machine.

Its tensors wrap those of the CPU. Refused are float64, operators for which PyTorch's own table names no kernel on
Apple's GPUs (MPS), and tensors of two devices in one operation.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchgen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("fake")
DEVICE = torch.device("fake", 0)
BETWEEN_DEVICES = {"aten::_to_copy", "aten::copy_"}


@functools.cache
def supported_operators() -> frozenset[str]:
    """Names of the operators that run on MPS, or consist of others, by PyTorch's table of native functions."""
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    delegates = {}
    kernels = {}
    for row in re.split(r"^- func: ", table.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name = row.partition("(")[0]
        delegate = re.search(r"^  structured_delegate: (\S+)", row, re.MULTILINE)
        delegates[name] = delegate[1] if delegate else name
        dispatch = re.search(r"^  dispatch:\n((?:    .*\n)+)", row, re.MULTILINE)
        kernels[name] = dispatch[1] if dispatch else "Composite"
    supporting = re.compile(r"^    .*\b(MPS\b|Composite).*:", re.MULTILINE)
    is_supported = {name: text == "Composite" or bool(supporting.search(text)) for name, text in kernels.items()}
    return frozenset(f"aten::{name}" for name, delegate in delegates.items() if is_supported[delegate])


class DeviceTensor(Tensor):
    """A tensor on the fake device."""

    held: Tensor
    """Its values, on the CPU."""

    @staticmethod
    def __new__(cls, held: Tensor):
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        wrapper = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        wrapper.held = held
        return wrapper

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held})"

    def tolist(self) -> list:  # PyTorch's own refuses wrappers
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class FakeDevice(TorchDispatchMode):
    """Within the context, the fake device exists: tensors are made on it and moved to it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler, which takes seconds

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor would move its values past this mode
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function, args: tuple, kwargs: dict[str, Any]):
    """Call an operator on the CPU, and put the result where the real device would have it."""
    name = function.name()
    stem = name.partition(".")[0]
    tensors = list(tensors_in([*args, *kwargs.values()]))
    is_on_device = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    if kwargs.get("device") is not None:
        is_on_device = kwargs["device"].type == DEVICE.type
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif stem not in BETWEEN_DEVICES and is_on_device:
        on_cpu = [tensor for tensor in tensors if tensor.ndim and not isinstance(tensor, DeviceTensor)]
        if on_cpu:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} found {DEVICE} and cpu")
    if stem not in BETWEEN_DEVICES and is_on_device and name not in supported_operators():
        raise NotImplementedError(f"The operator '{name}' is not currently implemented for the MPS device")
    result = function(*map(held, args), **{key: held(value) for key, value in kwargs.items()})
    if stem.endswith("_"):  # the operator has changed its argument
        return args[0]
    return placed(result) if is_on_device else result


def tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def held(value: Any) -> Any:
    """An operator's argument with tensors of the CPU in place of those of the device."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(held, value))
    return value.held if isinstance(value, DeviceTensor) else value


def placed(value: Any) -> Any:
    """An operator's result with tensors of the device in place of those of the CPU."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(placed, value))
    return DeviceTensor(value) if isinstance(value, Tensor) else value
