"""The denoising as it is watched: moments of it, kept and drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from unclip.images import captioned_grid


@dataclass(frozen=True)
class Moment:
    """One step of the denoising of a batch."""

    rows: range
    """Which samples are in the batch."""
    step: int
    """0 for the first, at pure noise."""
    steps: int
    """How many there will be."""
    t: int
    x: np.ndarray
    """The state x_t, uint8 (B, H, W, C)."""
    x0: np.ndarray
    """The clean image predicted from it, uint8 (B, H, W, C)."""


class Trajectory:
    """Keeps moments, evenly spread from the first step to the last: give it to a pipeline as its `on_step`."""

    def __init__(self, moments: int = 10):
        self.count = moments
        self.parts: dict[int, list[Moment]] = {}

    def __call__(self, moment: Moment) -> None:
        if moment.step in np.linspace(0, moment.steps - 1, self.count).round():
            self.parts.setdefault(moment.step, []).append(moment)

    def of(self, rows: Sequence[int]) -> Callable[[Moment], None]:
        """An `on_step` that keeps these rows of a batch alone."""
        return lambda moment: self(replace(moment, x=moment.x[rows], x0=moment.x0[rows]))

    @property
    def x(self) -> np.ndarray:
        """The states of all samples, uint8 (moments, N, H, W, C)."""
        return np.stack([np.concatenate([part.x for part in parts]) for parts in self.parts.values()])

    @property
    def x0(self) -> np.ndarray:
        """The clean images predicted from them, uint8 (moments, N, H, W, C)."""
        return np.stack([np.concatenate([part.x0 for part in parts]) for parts in self.parts.values()])


def denoising_strip(captions: Sequence[str], trajectory: Trajectory, n: int) -> Image.Image:
    """Moments from left to right, for the first of each caption's n samples: the state x_t above the predicted x0."""
    rows = []
    for i in range(0, len(captions), n):
        rows.append((f"{captions[i]}: x_t", trajectory.x[:, i]))
        rows.append(("predicted x0", trajectory.x0[:, i]))
    return captioned_grid(rows)


def denoising_frames(captions: Sequence[str], trajectory: Trajectory, n: int) -> list[Image.Image]:
    """A grid for each moment: of the states, then, as the last frame, of the final prediction."""
    states = [*trajectory.x, trajectory.x0[-1]]
    starts = range(0, len(captions), n)
    return [captioned_grid([(captions[i], state[i : i + n]) for i in starts]) for state in states]
