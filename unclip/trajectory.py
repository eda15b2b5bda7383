"""Watch the denoising: its moments, a record of them, and pictures of the record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import Tensor

from unclip.grids import captioned_grid


@dataclass(frozen=True)
class Moment:
    """One step of the denoising of a batch."""

    samples: range
    """Indices of the batch's samples among all samples of the call."""
    step: int
    """Index of the step; 0 starts at pure noise."""
    steps: int
    """Number of steps."""
    t: float
    """The time, from 1, pure noise, to 0, clean."""
    x: np.ndarray
    """The state x_t, uint8 (B, H, W, C)."""
    x0: np.ndarray
    """The clean image predicted from it, uint8 (B, H, W, C)."""


class Trajectory:
    """Record moments that are evenly spread from the first step to the last. Pass it to a pipeline as `on_step`."""

    def __init__(self, moments: int = 10):
        self.count = moments
        self.batches: dict[int, list[Moment]] = {}
        """Step -> the moments of all batches at it."""

    def __call__(self, moment: Moment) -> None:
        if moment.step in np.linspace(0, moment.steps - 1, self.count).round():
            self.batches.setdefault(moment.step, []).append(moment)

    def of_samples(self, samples: Sequence[int]) -> Callable[[Moment], None]:
        """Return an `on_step` that records only these samples."""

        def record(moment: Moment) -> None:
            chosen = [row for row, sample in enumerate(moment.samples) if sample in samples]
            if chosen:
                self(replace(moment, x=moment.x[chosen], x0=moment.x0[chosen]))

        return record

    @property
    def x(self) -> np.ndarray:
        """The states of all samples, uint8 (moments, N, H, W, C)."""
        return np.stack([np.concatenate([moment.x for moment in batches]) for batches in self.batches.values()])

    @property
    def x0(self) -> np.ndarray:
        """The clean images predicted from them, uint8 (moments, N, H, W, C)."""
        return np.stack([np.concatenate([moment.x0 for moment in batches]) for batches in self.batches.values()])


class StopDrawing(Exception):
    """Raise it in an `on_step`: the drawing ends, and its images are those that this step predicts."""

    predicted: Tensor
    """The batch's predicted images, (B, C, H, W) in [-1, 1]; the pipeline notes them."""


def denoising_strip(captions: Sequence[str], trajectory: Trajectory, n: int) -> Image.Image:
    """Draw the moments from left to right, for the first of each caption's n samples: x_t above the predicted x0."""
    rows = []
    for i in range(0, len(captions), n):
        rows.append((f"{captions[i]}: x_t", trajectory.x[:, i]))
        rows.append(("predicted x0", trajectory.x0[:, i]))
    return captioned_grid(rows)


def denoising_frames(captions: Sequence[str], trajectory: Trajectory, n: int) -> list[Image.Image]:
    """Draw a grid of all states for each moment, and as the last frame a grid of the final prediction."""
    states = [*trajectory.x, trajectory.x0[-1]]
    starts = range(0, len(captions), n)
    return [captioned_grid([(captions[i], state[i : i + n]) for i in starts]) for state in states]
