"""What one stage takes on so many devices: memory, operations, days."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from stages.plan.costs import ModelCost, contrastive
from stages.plan.machine import Accelerator, duration


@dataclass(frozen=True)
class Way:
    """How a step is laid out on a device."""

    sharded: bool = False
    """FSDP2 in place of DDP: each device holds a part of the weights, gradients and moments."""
    recomputed: bool = False
    """Of each block only the input is kept; the backward pass computes the rest again."""
    accumulate: int = 1
    """Parts that the device's share of a batch is taken in."""

    @property
    def options(self) -> str:
        given = [
            f"--train.accumulate {self.accumulate}" * (self.accumulate > 1),
            "--train.recompute" * self.recomputed,
            "--train.shard" * self.sharded,
        ]
        return " ".join(filter(None, given))


def layouts(devices: int) -> dict[str, Way]:
    """By their names. A lone device has nobody to share with."""
    if devices == 1:
        return {"alone": Way(), "alone, recomputed": Way(recomputed=True)}
    return {
        "DDP": Way(),
        "DDP, recomputed": Way(recomputed=True),
        "FSDP2": Way(sharded=True),
        "FSDP2, recomputed": Way(sharded=True, recomputed=True),
    }


@dataclass(frozen=True)
class Budget:
    """A stage's model and settings on a number of devices of one kind."""

    name: str
    model: ModelCost
    steps: int
    batch_size: int
    """Images per step, over all devices."""
    moments: int
    """Numbers that the optimiser keeps of each parameter."""
    devices: int
    device: Accelerator
    mfu: float

    @property
    def share(self) -> int:
        """Images per step on each device."""
        return self.batch_size // self.devices

    def state(self, sharded: bool) -> float:
        """Bytes that a device holds of weights, their average, and moments, all float32; of gradients see `memory`.

        DDP with several devices also keeps the gradients, in the buckets in which it sends them.
        """
        copies = 2 + self.moments + self.keeps_gradients(sharded)
        return 4 * copies * self.model.total.parameters / (self.devices if sharded else 1)

    def keeps_gradients(self, sharded: bool) -> bool:
        """Whether the averaged gradients have memory of their own between steps: DDP's buckets."""
        return self.devices > 1 and not sharded

    def copied(self, sharded: bool) -> float:
        """Bytes of weights beside those: as autocast keeps them for the matrix products, and as FSDP2 gathers them.

        That is a block, the next one, and a block's gradient, and for the whole step what is in no block.
        """
        model, largest = self.model, max(block.parameters for block in self.model.blocks)
        cast = self.device.width * model.total.parameters if self.device.width < 4 else 0
        return cast + (4 * (model.rest.parameters + 3 * largest) if sharded else 0)

    def activations(self, images: float, recomputed: bool) -> float:
        """Bytes kept of so many images at the end of the forward pass, and a quarter of a block's to work with."""
        model, width = self.model, self.device.width
        largest = max(block.kept(width) for block in model.blocks)
        if recomputed:
            return images * (4 * sum(model.inputs) + model.rest.kept(width) + 1.25 * largest)
        return images * (model.total.kept(width) + 0.25 * largest)

    def contrastive(self) -> float:
        """Bytes of the contrastive loss: a device's images against the captions of all."""
        return contrastive(self.share, self.batch_size) if self.name == "clip" else 0.0

    def memory(self, way: Way) -> float:
        """Bytes on each device at a step's peak: at the end of its forward pass, or with all of its gradients."""
        images = math.ceil(self.share / way.accumulate)
        held = self.state(way.sharded) + self.copied(way.sharded)
        gradients = 4 * self.model.total.parameters / (self.devices if way.sharded else 1)
        earlier = gradients if way.accumulate > 1 else 0.0  # of the parts before, which are in no bucket yet
        last = 0.0 if self.keeps_gradients(way.sharded) else gradients
        return held + max(last, earlier + self.activations(images, way.recomputed) + self.contrastive())

    def fits(self, way: Way) -> bool:
        return self.memory(way) <= self.device.usable

    def accumulated(self, sharded: bool, recomputed: bool) -> Way | None:
        """The same layout with the fewest parts that fit on the device; None if not even one image at a time does."""
        counts = (parts for parts in range(1, self.share + 1) if self.share % parts == 0)
        ways = (Way(sharded, recomputed, parts) for parts in counts)
        return next(filter(self.fits, ways), None)

    def operations(self, way: Way) -> float:
        """Per image and training step. CLIP takes its images in parts by a forward pass more, which has no graph."""
        again = sum(block.operations for block in self.model.blocks) if way.recomputed else 0.0
        ahead = self.model.total.operations if self.name == "clip" and way.accumulate > 1 else 0.0
        return self.model.total.training + again + ahead

    def seconds(self, way: Way) -> float:
        """Per step."""
        rate = self.devices * self.device.peak * self.mfu
        return self.operations(way) * self.batch_size / rate

    def duration(self, way: Way) -> str:
        """Of all steps."""
        return duration(self.seconds(way) * self.steps)

    def best(self) -> Way | None:
        """Of all that fit, what takes the fewest operations, and of those the plainest."""
        return min(self._fitting(), key=lambda way: (self.operations(way), way.sharded, way.accumulate), default=None)

    def _fitting(self) -> Iterator[Way]:
        for way in layouts(self.devices).values():
            if found := self.accumulated(way.sharded, way.recomputed):
                yield found
