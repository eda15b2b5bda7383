"""The batches of a run. Where a GPU computes the steps, threads draw the batches of those to come meanwhile.

A batch is a pure function of the seed and the step, and is drawn on the CPU: the same on every device, however many
threads draw.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from data.dataset import batch_generator, shuffled_rows
from stages import runtime
from unclip.tensor_batch import TensorBatch

AHEAD = 8
"""Batches that are drawn at once beside a GPU, a thread each."""


def batches(stage, config, first: int, device: torch.device) -> Iterator[TensorBatch]:
    """This rank's share of the batch of each step from the first on, on the device.

    Args:
        stage: gives `batch` and `size`, see stages/loop.py.
        config: gives `steps`, `batch_size` and `seed`.
    """
    steps = range(first, config.steps)
    if device.type != "cuda":
        for step in steps:
            yield draw(stage, config, step).to(device)
        return
    with ThreadPoolExecutor(AHEAD, "batches", torch.set_num_threads, (1,)) as threads:
        drawn = deque()
        for step in steps:
            while len(drawn) < AHEAD and step + len(drawn) < config.steps:
                drawn.append(threads.submit(lambda at: draw(stage, config, at).pin_memory(), step + len(drawn)))
            yield drawn.popleft().result().to(device, non_blocking=True)


def draw(stage, config, step: int) -> TensorBatch:
    """This rank's share of the batch of a step, on the CPU."""
    rows = shuffled_rows(step, config.batch_size, stage.size, config.seed)
    return stage.batch(rows, batch_generator(config.seed, step)).share(runtime.rank(), runtime.world_size())
