"""Tensors as safetensors: plain files, and sealed ones, whose header holds the checksum of the whole file."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unclip.errors import UserError, reason
from unclip.store.checksums import xxh3

BLANK = "0" * 32
"""Stands in the header for the checksum while it is computed."""
FAULTS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, SafetensorError)
"""Errors that reading a damaged file may raise."""

Gather = Callable[[Tensor], Tensor]
"""Makes a tensor whole, of which each process holds a share. All of them must call it."""


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


def dump_tensors(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)


def stream_tensors(tensors: Mapping[str, Tensor], gather: Gather = unchanged) -> Iterator[bytes | memoryview]:
    """The bytes that `dump_tensors` returns, in parts: the header, then each tensor, gathered when its turn comes."""
    nothing = {name: torch.empty(0, dtype=tensor.dtype, device="cpu") for name, tensor in tensors.items()}
    order = safetensors.torch.save(nothing)
    header = json.loads(order[8:])  # as the package orders the tensors and names their types
    end = 0
    for name, entry in header.items():
        begin = end
        end += tensors[name].numel() * tensors[name].element_size()
        entry |= {"shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in header:
        values = gather(tensors[name]).detach().cpu().contiguous()
        yield memoryview(values.reshape(-1).view(torch.uint8).numpy())


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises an error of `FAULTS` if its header is damaged."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def parse_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file. Raises UserError, which names `path`, if it is damaged."""
    try:
        return safetensors.torch.load(content)
    except FAULTS as error:
        raise UserError(
            f"{path} is damaged or truncated ({reason(error)}); restore it or train that part again"
        ) from error


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not floating:
        return None
    largest = torch._foreach_norm(list(floating.values()), torch.inf)
    finite = torch.stack([norm.float().cpu() for norm in largest]).isfinite().tolist()
    return next((name for name, good in zip(floating, finite, strict=True) if not good), None)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata. Raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or truncated ({error}); restore it or train that part again") from error


def dump_sealed_tensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[bytes | memoryview]:
    """The bytes of a safetensors file, in two parts, with their XXH3 in the header's metadata."""
    header, body = _split(dump_tensors(tensors, metadata | {"checksum": BLANK}))
    checksum = xxh3(header, body)
    return [header.replace(BLANK.encode(), checksum.encode(), 1), body]


def load_sealed_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a sealed file. Raises UserError if any of its bytes has changed."""
    content = path.read_bytes()
    header, body = _split(content)
    try:
        metadata = json.loads(header[8:])["__metadata__"]
        checksum = metadata["checksum"]
        if xxh3(header.replace(checksum.encode(), BLANK.encode(), 1), body) != checksum:
            raise UserError("its checksum does not match")
        return safetensors.torch.load(content), metadata
    except FAULTS as error:
        raise UserError(f"{path} is damaged ({reason(error)})") from error


def _split(content: bytes) -> tuple[bytes, memoryview]:
    """The header of a safetensors file, with its length before it, and the rest."""
    length = 8 + int.from_bytes(content[:8], "little")
    return content[:length], memoryview(content)[length:]
