"""Watch work while it goes on: the network's steps, whatever else it tells, and its result."""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from unclip.drawing import image_reranker
from unclip.pipeline import UnCLIP
from unclip.settings import Sampling

ON_STEP: contextvars.ContextVar[Callable[[], None] | None] = contextvars.ContextVar("on_step", default=None)
"""Called at each step of the decoder in this context: pipelines are shared, and each visitor watches only their own."""


@dataclass(frozen=True)
class Progress:
    """How far work has come."""

    done: int
    """Steps of the decoder so far."""
    total: int
    """Steps that are expected."""


@dataclass(frozen=True)
class Finished:
    """The end of work."""

    result: Any


class WatcherLeft(Exception):
    """Ends work that nobody watches any more."""


def count_steps(pipe: UnCLIP) -> None:
    """Let each call of a pipeline's decoders tell `ON_STEP`. Those without a network tell nothing."""
    for decoder in (pipe.decoder, pipe.fast_decoder):
        network = getattr(decoder, "network", None)
        if network is not None:
            network.register_forward_hook(tell_step)


def tell_step(*_: Any) -> None:
    on_step = ON_STEP.get()
    if on_step:
        on_step()


def expected_steps(pipe: UnCLIP, sampling: Sampling, n: int, is_watched: bool = False) -> int:
    """Steps that the decoder takes to draw n images, those that are drawn anew left out.

    A watched image that was chosen, of several candidates or after redrawing, is drawn once more.
    """
    settings = active_settings(pipe, sampling)
    candidates = settings.num_candidates
    batches = -(-n // max(1, sampling.batch_size // candidates))
    is_chosen = candidates > 1 or image_reranker(pipe.prior, sampling.prior) is not None
    return settings.steps * batches * (2 if is_watched and is_chosen else 1)


def active_settings(pipe: UnCLIP, sampling: Sampling) -> Any:
    """Settings of the decoder that draws: the fast one, if there is one and it is not turned off."""
    return sampling.fast_decoder if pipe.fast_decoder and sampling.fast_decoder.steps else sampling.decoder


def watch(work: Callable[[Callable[[Any], None]], Any], total: int) -> Iterator[Any]:
    """Yield a `Progress` for each step of some work, all that it tells, and at last its result as `Finished`.

    `work(tell)` runs in a thread of its own and calls `tell` with whatever is to be yielded. Once the iterator is
    closed, the work ends at its next step. An error in the work is raised here.
    """
    events: queue.SimpleQueue = queue.SimpleQueue()
    closed = threading.Event()
    done = 0

    def tell(event: Any) -> None:
        if closed.is_set():
            raise WatcherLeft
        events.put(event)

    def on_step() -> None:
        nonlocal done
        done += 1
        tell(Progress(done, max(done, total)))

    def run() -> None:
        ON_STEP.set(on_step)
        try:
            events.put(Finished(work(tell)))
        except BaseException as error:  # the watcher raises it
            events.put(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    try:
        event: Any = None
        while not isinstance(event, Finished):
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        closed.set()
