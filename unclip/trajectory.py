"""The denoising as it is watched: moments of it, kept and drawn."""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image

from unclip.images import captioned_grid

T = TypeVar("T")


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
        """An `on_step` that keeps these of the samples alone."""

        def keep(moment: Moment) -> None:
            if own := [at for at, row in enumerate(moment.rows) if row in rows]:
                self(replace(moment, x=moment.x[own], x0=moment.x0[own]))

        return keep

    @property
    def x(self) -> np.ndarray:
        """The states of all samples, uint8 (moments, N, H, W, C)."""
        return np.stack([np.concatenate([part.x for part in parts]) for parts in self.parts.values()])

    @property
    def x0(self) -> np.ndarray:
        """The clean images predicted from them, uint8 (moments, N, H, W, C)."""
        return np.stack([np.concatenate([part.x0 for part in parts]) for parts in self.parts.values()])


class NobodyWatches(Exception):
    """Ends a drawing whose watcher has left."""


def watch(draw: Callable[[Callable[[Moment], None]], T]) -> Iterator[Moment | T]:
    """The moments of a drawing, as they come from a thread of its own, and last what it returns.

    `draw` is given the on_step that it shall call. Once the iterator is closed the drawing ends at its next step.
    """
    told: queue.SimpleQueue = queue.SimpleQueue()
    left = threading.Event()

    def on_step(moment: Moment) -> None:
        if left.is_set():
            raise NobodyWatches
        told.put(moment)

    def work() -> None:
        try:
            told.put(draw(on_step))
        except BaseException as error:  # raised where it is watched
            told.put(error)

    threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
    try:
        while isinstance(item := told.get(), Moment):
            yield item
        if isinstance(item, BaseException):
            raise item
        yield item
    finally:
        left.set()


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
