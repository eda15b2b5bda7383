"""The memory and the time of training one part on a number of devices, by the layout of its steps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from stages.plan.counting import PartCost
from stages.plan.machine import Accelerator, duration


@dataclass(frozen=True)
class Layout:
    """How a step is laid out on the devices."""

    sharded: bool = False
    """FSDP2 in place of DDP: each device holds a share of the weights, gradients and moments."""
    recomputed: bool = False
    """Keep the input of each block alone, and compute the rest again in the backward pass."""
    accumulate: int = 1
    """Parts that the device's share of a batch is taken in."""

    @property
    def options(self) -> str:
        """Options of a trainer."""
        options = [
            f"--train.accumulate {self.accumulate}" * (self.accumulate > 1),
            "--train.recompute" * self.recomputed,
            "--train.shard" * self.sharded,
        ]
        return " ".join(filter(None, options))


def layouts(devices: int) -> dict[str, Layout]:
    """The layouts to choose from, by their names. A single device has nothing to shard over."""
    if devices == 1:
        return {"alone": Layout(), "alone, recomputed": Layout(recomputed=True)}
    return {
        "DDP": Layout(),
        "DDP, recomputed": Layout(recomputed=True),
        "FSDP2": Layout(sharded=True),
        "FSDP2, recomputed": Layout(sharded=True, recomputed=True),
    }


@dataclass(frozen=True)
class Budget:
    """A part's costs and settings on a number of devices of one kind."""

    name: str
    kind: str
    cost: PartCost
    steps: int
    batch_size: int
    """Examples per step, over all devices."""
    moments: int
    """Numbers that the optimiser keeps of each parameter."""
    devices: int
    device: Accelerator
    mfu: float

    @property
    def share(self) -> int:
        """Examples per step on each device."""
        return self.batch_size // self.devices

    @property
    def rate(self) -> float:
        """Operations per second of all devices together."""
        return self.devices * self.device.peak * self.mfu

    def state(self, sharded: bool) -> float:
        """Bytes that a device holds of weights, their average, and moments, all in float32; for gradients see `memory`.

        DDP on several devices also keeps the gradients, in the buckets that it sends them in.
        """
        copies = 2 + self.moments + self.keeps_gradients(sharded)
        trained = 4 * copies * self.cost.parameters / (self.devices if sharded else 1)
        return trained + 4 * 2 * self.cost.untrained

    def keeps_gradients(self, sharded: bool) -> bool:
        """Whether the averaged gradients have memory of their own between steps: DDP's buckets."""
        return self.devices > 1 and not sharded

    def gathered(self, sharded: bool) -> float:
        """Bytes of the weights that FSDP2 gathers: two blocks, a block's gradient, and all that is in no block."""
        return 4 * (self.cost.outside_parameters + 3 * self.cost.block_parameters) if sharded else 0.0

    def activations(self, examples: float, recomputed: bool) -> float:
        """Bytes kept at the end of the forward pass, and a quarter of a block's to work with.

        Weights that autocast has cast stay until then, those of recomputed blocks too.
        """
        cost = self.cost
        per_example = cost.saved.per_example + 0.25 * cost.saved_block
        if recomputed:
            per_example = cost.saved_recomputed.per_example + 1.25 * cost.saved_block
        return cost.saved.fixed + examples * per_example

    def pairs(self) -> float:
        """Bytes of a contrastive loss: a device's examples against those of all."""
        return self.cost.saved.per_pair * self.share * self.batch_size

    def memory(self, layout: Layout) -> float:
        """Bytes on each device at a step's peak: at the end of its forward pass, or with all of its gradients."""
        examples = math.ceil(self.share / layout.accumulate)
        held = self.state(layout.sharded) + self.gathered(layout.sharded)
        gradients = 4 * self.cost.parameters / (self.devices if layout.sharded else 1)
        earlier = gradients if layout.accumulate > 1 else 0.0  # of the parts before, which are in no bucket yet
        last = 0.0 if self.keeps_gradients(layout.sharded) else gradients
        return held + max(last, earlier + self.activations(examples, layout.recomputed) + self.pairs())

    def fits(self, layout: Layout) -> bool:
        return self.memory(layout) <= self.device.usable

    def accumulated(self, sharded: bool, recomputed: bool) -> Layout | None:
        """The layout with the fewest parts that fit on the device; None if not even one example at a time does."""
        counts = (parts for parts in range(1, self.share + 1) if self.share % parts == 0)
        candidates = (Layout(sharded, recomputed, parts) for parts in counts)
        return next(filter(self.fits, candidates), None)

    def operations(self, layout: Layout) -> float:
        """Operations per example and training step.

        A part whose loss compares examples takes another forward pass without a graph before it takes them in parts.
        """
        again = self.cost.block_operations if layout.recomputed else 0.0
        ahead = self.cost.operations if layout.accumulate > 1 and not self.cost.splits else 0.0
        return self.cost.training + again + ahead

    def seconds(self, layout: Layout) -> float:
        """Seconds per step."""
        return self.operations(layout) * self.batch_size / self.rate

    def duration(self, layout: Layout) -> str:
        """The time of all steps, as text."""
        return duration(self.seconds(layout) * self.steps)

    def best(self) -> Layout | None:
        """The layout that takes the fewest operations of those that fit, and of several the plainest."""
        return min(
            self._fitting(),
            key=lambda layout: (self.operations(layout), layout.sharded, layout.accumulate),
            default=None,
        )

    def _fitting(self) -> Iterator[Layout]:
        for layout in layouts(self.devices).values():
            if accumulated := self.accumulated(layout.sharded, layout.recomputed):
                yield accumulated
