"""Compute a local network on large images in overlapping tiles, exactly as on the whole."""

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor


def in_tiles(network: Callable[..., Tensor], size: int, reach: int, stride: int) -> Callable[..., Tensor]:
    """Wrap network(*images), images (B, C, H, W), so that it sees tiles of at most `size` pixels and their margins.

    Args:
        reach: a pixel of the output depends on the pixels of the input within this distance only.
        stride: tiles begin at multiples of it, as the network's own grids of pixels do.
    """
    margin = -(-reach // stride) * stride
    size = max(stride, size // stride * stride)

    def tiled(*images: Tensor) -> Tensor:
        height, width = images[0].shape[-2:]
        if max(height, width) <= size:
            return network(*images)
        pad_h = -height % stride
        pad_w = -width % stride
        # Padded here as the UNet pads the whole.
        padding = (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2)
        images = tuple(F.pad(image, padding) for image in images)
        output = None
        for rows, outer_rows, inner_rows in spans(images[0].shape[-2], size, margin):
            for columns, outer_columns, inner_columns in spans(images[0].shape[-1], size, margin):
                part = network(*(image[..., outer_rows, outer_columns] for image in images))
                if output is None:
                    output = part.new_empty(*part.shape[:2], *images[0].shape[-2:])
                output[..., rows, columns] = part[..., inner_rows, inner_columns]
        assert output is not None
        top = padding[2]
        left = padding[0]
        return output[..., top : top + height, left : left + width]

    return tiled


def spans(length: int, size: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    """For each tile along one side: its place, its place with the surroundings, and its place within the latter."""
    for start in range(0, length, size):
        stop = min(start + size, length)
        outer_start = max(0, start - margin)
        outer_stop = min(length, stop + margin)
        yield slice(start, stop), slice(outer_start, outer_stop), slice(start - outer_start, stop - outer_start)
