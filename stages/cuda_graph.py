"""The forward and backward pass of a training step as a CUDA graph. Not seen on a GPU.

Python launches the kernels of a small network more slowly than a GPU computes them. A graph holds all launches of a
pass, and one call replays them, on the same memory: a batch is copied to where the graph reads it, and the loss and the
gradients are found where it writes them. The optimiser's step stays outside, as its learning rate changes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages import runtime
from unclip.errors import reason
from unclip.tensor_batch import TensorBatch

MOST_GRAPHS = 8
"""Shapes of batches that get a graph, whose gradients take as much memory as the weights."""

Gradients = Callable[[TensorBatch], Tensor]
"""Adds the gradients of a batch's loss to those of the weights, and returns the loss."""
Results = list[Tensor | None]
Capture = Callable[[Callable[[], Results]], tuple[Results, Callable[[], object]]]
"""Captures what a function computes. Returns its results, and a function that computes them again, in their place."""


def is_recorded(config: Any, device: torch.device) -> bool:
    """Whether the steps of a training are recorded: on one GPU, in one part."""
    return device.type == "cuda" and config.cuda_graph and not any(hindrances(config).values())


def hindrances(config: Any) -> dict[str, bool]:
    """Which options and circumstances keep the steps of a training from being recorded."""
    return {
        "several ranks": runtime.world_size() > 1,
        "--train.accumulate": config.accumulate > 1,
        "--train.recompute": config.recompute,
    }


def recorded(gradients: Gradients, objective: nn.Module, config: Any, device: torch.device) -> Gradients:
    """The same gradients of the objective's weights, by CUDA graphs where the steps are recorded."""
    if is_recorded(config, device):
        return Recorder(gradients, list(objective.parameters()), CUDACapture())
    if device.type == "cuda" and config.cuda_graph:
        reasons = " and ".join(name for name, hinders in hindrances(config).items() if hinders)
        runtime.print0(f"steps are not recorded as CUDA graphs, because of {reasons}")
    return gradients


class Recorder:
    """Gradients by a graph for each shape of batch that comes twice in a row; other batches are computed eagerly.

    Args:
        gradients: a pure function of the batch and the weights. It must not wait for the GPU, nor copy to it.
        parameters: all weights. A gradient that was there before is not added to, but replaced.
    """

    def __init__(self, gradients: Gradients, parameters: list[nn.Parameter], capture: Capture):
        self.gradients = gradients
        self.parameters = parameters
        self.capture: Capture | None = capture
        self.graphs: dict[tuple, Graph] = {}
        self.last_shapes: tuple = ()

    def __call__(self, batch: TensorBatch) -> Tensor:
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in named_tensors(batch))
        is_repeated = shapes == self.last_shapes
        self.last_shapes = shapes
        if is_repeated and shapes not in self.graphs and len(self.graphs) < MOST_GRAPHS:
            self._record(batch, shapes)
        if shapes not in self.graphs:
            return self.gradients(batch)
        return self._replay(self.graphs[shapes], batch)

    def _record(self, batch: TensorBatch, shapes: tuple) -> None:
        """Capture a graph for batches of these shapes. After an error nothing is recorded any more."""
        if self.capture is None:
            return
        own_batch = batch.map(clone)

        def compute() -> Results:
            clear_gradients(self.parameters)  # so that each replay sets them anew
            loss = self.gradients(own_batch)
            return [loss, *(parameter.grad for parameter in self.parameters)]

        try:
            results, replay = self.capture(compute)
            self.graphs[shapes] = Graph([tensor for _, tensor in named_tensors(own_batch)], results, replay)
        except RuntimeError as error:  # CUDA's, or too little memory
            runtime.print0(f"steps are not recorded as CUDA graphs any more ({reason(error)})")
            self.capture = None
        clear_gradients(self.parameters)

    def _replay(self, graph: "Graph", batch: TensorBatch) -> Tensor:
        torch._foreach_copy_(graph.inputs, [tensor for _, tensor in named_tensors(batch)])
        graph.replay()
        loss, *gradients = graph.results
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        assert loss is not None
        return loss.clone()  # the next replay overwrites it, and the log keeps it


@dataclass(frozen=True)
class Graph:
    inputs: list[Tensor]
    """The batch that the graph reads."""
    results: Results
    """The loss and all gradients that it writes; None for a weight without one."""
    replay: Callable[[], object]


class CUDACapture:
    """Capture what a function launches on the GPU. All graphs share memory, as they never run at once."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Results]) -> tuple[Results, Callable[[], object]]:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self.stream):
                function()  # libraries take memory and choose kernels at first use, which a capture cannot hold
            current.wait_stream(self.stream)
            # threads that draw batches go on allocating, which "global" would forbid
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                results = function()
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own
        return results, graph.replay


def clear_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def clone(part: Tensor | TensorBatch) -> Tensor | TensorBatch:
    """The same in memory of its own, nested batches included."""
    return part.clone() if isinstance(part, Tensor) else part.map(clone)


def named_tensors(batch: TensorBatch, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a batch, those of nested batches included, always in the same order."""
    for name, part in vars(batch).items():
        if isinstance(part, TensorBatch):
            yield from named_tensors(part, f"{prefix}{name}.")
        elif part is not None:
            yield f"{prefix}{name}", part
