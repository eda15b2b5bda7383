"""A training's batches from a stream: each step has a data set of its own, and the stream a state to go on from."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from data.dataset import CaptionedImages
from data.shuffling import batch_generator
from data.stream.rows import Row
from data.stream.streamed_images import StreamedImages
from stages import runtime
from stages.batches import PREFETCH, StepDraw
from stages.cuda_graph import is_recorded
from unclip.errors import UserError, quantity
from unclip.tensor_batch import TensorBatch

Embed = Callable[[CaptionedImages, list[Row]], Any]


class StepStream:
    """The examples of each step for this rank, in order.

    Args:
        images: the stream.
        embed: turns the images of a step, and their rows, into the data set that the stage reads.
    """

    def __init__(self, images: StreamedImages, embed: Embed = lambda images, _: images):
        self.images = images
        self.embed = embed
        self.problems: Counter[str] = Counter()
        self.reported = 0
        self.state: dict[str, Any] = {}
        """The state of this rank after the step whose batch was given last."""

    def __str__(self) -> str:
        return f"a stream of {quantity(len(self.images.plan.shards), 'shard')}"

    def batches(
        self, stage: Any, config: Any, first: int, device: torch.device, states: list[dict[str, Any]]
    ) -> Iterator[TensorBatch]:
        """This rank's share of the batch of each step from the first on, on the device.

        Where a GPU computes the steps, a thread draws later ones meanwhile; a single one, as the rows come in order.

        Args:
            states: those of all ranks, from which the stream goes on; none for its beginning.
        """
        ranks = runtime.world_size()
        loader = self.images.open(config.seed, config.batch_size // ranks, runtime.rank(), ranks)
        if first and not states:
            raise UserError(f"the saved state of {stage.name} is not that of a stream; choose another --out")
        if states and (line := loader.load_state_dict(states)):
            runtime.print0(line)
        self.state = loader.state_dict()
        ahead = PREFETCH if device.type == "cuda" else 1
        even = is_recorded(config, device)

        def draw(step: int) -> tuple[TensorBatch, dict[str, Any]]:
            batch = self._draw(stage, config, step, loader, even)
            return (batch.pin_memory() if device.type == "cuda" else batch), loader.state_dict()

        try:
            with ThreadPoolExecutor(1, "stream", torch.set_num_threads, (torch.get_num_threads(),)) as thread:
                waiting = deque()
                for step in range(first, config.steps):
                    while len(waiting) < ahead and step + len(waiting) < config.steps:
                        waiting.append(thread.submit(draw, step + len(waiting)))
                    batch, self.state = waiting.popleft().result()
                    yield batch.to(device, non_blocking=True)
        finally:
            loader.close()
            self._tell_problems(at_end=True)

    def _draw(self, stage: Any, config: Any, step: int, loader: Any, even: bool) -> TensorBatch:
        rank = runtime.rank()
        ranks = runtime.world_size()
        batch = next(loader)
        self.problems.update(why for _, why in batch.problems)
        self._tell_problems()
        images = self.embed(self.images.step_images(batch), batch.rows)
        places = torch.arange(config.batch_size) // ranks  # of which `share` gives every rank its own rows, in order
        generator = batch_generator(config.seed, step)
        return stage.batch(StepDraw(places, generator, config.seed, step, rank, ranks, images, even))

    def _tell_problems(self, at_end: bool = False) -> None:
        """Print how many rows could not be used, and why: whenever they have doubled, and at the end."""
        count = self.problems.total()
        if count >= max(1, 2 * self.reported) or (at_end and count > self.reported):
            reasons = "; ".join(f"{n} x {why}" for why, n in self.problems.most_common(5))
            rank = f"rank {runtime.rank()}: " if runtime.world_size() > 1 else ""
            print(f"{rank}{quantity(count, 'row')} of {self.images.name} cannot be used and are left out: {reasons}")
            self.reported = count
