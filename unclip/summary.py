"""A pipeline in a few lines: its parts, their sizes, its data and its settings."""

from typing import TYPE_CHECKING

from unclip.registry import kind_of
from unclip.settings import Sampling, SamplingOptions

if TYPE_CHECKING:
    from unclip.pipeline import UnCLIP


def summarise(pipe: "UnCLIP") -> str:
    """The repr of a pipeline."""
    dtype = str(pipe.dtype).removeprefix("torch.")
    channels, height, width = pipe.decoder.image_shape
    lines = [
        f"UnCLIP {pipe.origin.get('name', 'of its own')}: images of {height}x{width}x{channels}, {pipe.device}, {dtype}"
    ]
    for part, model in pipe.parts.items():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        lines.append(f"{part:<13} {kind_of(part, model) or type(model).__name__}, {parameters:,} parameters")
    data = {manifest.data["name"]: None for manifest in pipe.manifests.values() if "name" in manifest.data}
    if data:
        lines.append(f"{'data':<13} {', '.join(data)}")
    changed = SamplingOptions.of(pipe.sampling).changed(Sampling())
    settings = ", ".join(f"{name}={value}" for name, value in changed.items())
    return "\n  ".join([*lines, f"{'settings':<13} {settings or 'the defaults of the library'}"])
