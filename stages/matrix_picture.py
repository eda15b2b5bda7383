"""A matrix as a picture, with its numbers in its fields."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def draw_matrix(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str] | np.ndarray,
    marked: Tensor | None = None,
) -> None:
    """Show a matrix (R, C) as fields, the higher the darker, with its numbers in them.

    Args:
        rows: R labels on the left.
        columns: C labels, or C images uint8 (C, H, W, 1), on top.
        marked: bool (R, C); fields that get a frame.
    """
    import matplotlib.pyplot as plt  # slow to import, and drawn with here only

    height, width = values.shape
    _, axes = plt.subplots(figsize=(3 + 0.6 * width, 1 + 0.45 * height), layout="constrained")
    axes.imshow(values, cmap="Blues", aspect="auto")
    threshold = (values.max() + values.min()) / 2
    for r, c in np.ndindex(height, width):
        ink = "white" if values[r, c] > threshold else "black"
        axes.text(c, r, f"{values[r, c]:.2f}", ha="center", va="center", color=ink, fontsize=8)
        if marked is not None and marked[r, c]:
            axes.add_patch(plt.Rectangle((c - 0.45, r - 0.45), 0.9, 0.9, fill=False, edgecolor="red", linewidth=2))
    axes.set_yticks(range(height), rows)
    if isinstance(columns, np.ndarray):
        axes.set_xticks([])
        for c, image in enumerate(columns):
            place = axes.inset_axes((c - 0.45, -2, 0.9, 1.4), transform=axes.transData)
            place.imshow(image, cmap="gray")
            place.axis("off")
    else:
        axes.set_xticks(range(width), columns, rotation=40, ha="left")
        axes.xaxis.tick_top()
    plt.show()
