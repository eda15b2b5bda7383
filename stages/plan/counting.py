"""Count the parameters and operations of a part's training, and the bytes that a step keeps for its backward pass.

The part's own model, batches and objective run on meta tensors, which have shapes and no memory. Nothing is computed,
so that the largest models are counted in seconds, and for devices that this machine lacks.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from stages.batches import StepDraw
from stages.inputs import CLIPInputs, Inputs
from stages.memory import repeated_blocks
from stages.plan.pretended import PretendedDevice
from stages.run_options import PartRun
from stages.train import PartStage
from unclip.registry import find_kind, resolve
from unclip.store.parts import WithoutInitialWeights
from unclip.tensor_batch import TensorBatch

BATCH_SIZES = (2, 3, 4)
"""Numbers of examples that are counted in turn: three points of a quadratic polynomial."""


@dataclass(frozen=True)
class Growth:
    """Bytes as a function of the number of examples in a batch."""

    fixed: float
    per_example: float
    per_pair: float = 0.0
    """For every two examples that are compared, as in a contrastive loss."""

    @classmethod
    def through(cls, sizes: list[int]) -> "Growth":
        """The growth that gives these three numbers of bytes for batches of `BATCH_SIZES`."""
        first, second, third = sizes
        per_pair = (third - 2 * second + first) / 2
        per_example = second - first - 5 * per_pair
        return cls(first - 2 * per_example - 4 * per_pair, per_example, per_pair)


@dataclass(frozen=True)
class PartCost:
    """One part of a pipeline, counted. Operations are floating-point operations: a product and a sum are two."""

    parameters: int
    """Trained numbers."""
    untrained: int
    """Numbers in buffers, and in parameters that are not trained, such as a teacher's."""
    operations: float
    """Per example, of a forward pass."""
    training: float
    """Per example, of a forward and a backward pass."""
    block_operations: float
    """Per example, of the forward passes of all blocks, which recomputation repeats."""
    block_parameters: int
    """Parameters of the largest block."""
    outside_parameters: int
    """Parameters that belong to no block."""
    saved: Growth
    """Bytes that the forward pass keeps for the backward pass, weights excluded."""
    saved_recomputed: Growth
    """The same where each block keeps its inputs alone."""
    saved_block: float
    """Bytes kept per example by the block that keeps most."""
    batch: float
    """Bytes per example of the batch itself."""
    pixels: float
    """Bytes per example of the images in the batch."""
    splits: bool
    """Whether the loss of a batch is the mean of its parts' losses; a contrastive loss is not."""


def count_part(
    part: str, run: PartRun, inputs: CLIPInputs | Inputs, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> PartCost:
    """Count a part of the kind that `run` names.

    Args:
        inputs: at least as many examples as the largest of `BATCH_SIZES`, each with a caption of its own.
        device: "cpu" or "cuda", the type of device to count for.
        dtype: type of the matrix products.
    """
    stage = build_stage(part, run, inputs)
    batches = [draw_batch(stage, size) for size in BATCH_SIZES]
    model = stage.model.to("meta")
    stage.objective.to("meta")
    operations = count_operations(stage, batches[0].to("meta"))
    saved = [count_saved(stage, batch.to("meta"), device, dtype) for batch in batches]
    blocks = repeated_blocks(model)
    block_sizes = [count_numbers(block.parameters()) for block in blocks]
    parameters = count_numbers(parameter for parameter in model.parameters() if parameter.requires_grad)
    growth = Growth.through([step.total for step in saved])
    growth_by_block = [Growth.through([step.by_block.get(block, 0) for step in saved]) for block in blocks]
    return PartCost(
        parameters=parameters,
        untrained=count_numbers(stage.objective.parameters()) + count_numbers(stage.objective.buffers()) - parameters,
        operations=operations.forward / len(batches[0]),
        training=operations.training / len(batches[0]),
        block_operations=operations.in_blocks / len(batches[0]),
        block_parameters=max(block_sizes, default=0),
        outside_parameters=parameters - sum(block_sizes),
        saved=growth,
        saved_recomputed=Growth.through([step.recomputed for step in saved]),
        saved_block=max((block.per_example for block in growth_by_block), default=growth.per_example),
        batch=sum(tensor.nbytes for tensor in tensors_in(batches[0])) / len(batches[0]),
        pixels=sum(tensor.nbytes for tensor in tensors_in(batches[0]) if tensor.dtype == torch.uint8) / len(batches[0]),
        splits=len(batches[0].split(2)) > 1,
    )


def count_embedding(run: PartRun, inputs: CLIPInputs) -> float:
    """Operations by which a frozen CLIP embeds one image and one caption, as for the cache of embeddings."""
    model = build_model("clip", run, inputs)
    vision = model.config.vision
    images = torch.empty(1, vision.channels, vision.image_size, vision.image_size, device="meta")
    token_ids = inputs.tokenizer.encode(inputs.train.captions[:1], model.config.text.context).to("meta")
    with torch.device("meta"), counting_operations() as counter, PretendedDevice("cpu"), torch.no_grad():
        model.encode_image(images)
        model.encode_text(token_ids)
    return counter.get_total_flops()


def build_model(part: str, run: PartRun, inputs: CLIPInputs | Inputs) -> nn.Module:
    """A model of the run's kind, of meta tensors."""
    stage_class = resolve(find_kind(part, run.kind).stage)
    with torch.device("meta"), WithoutInitialWeights():
        return stage_class.build_model(run, inputs.shapes)


def build_stage(part: str, run: PartRun, inputs: CLIPInputs | Inputs) -> PartStage:
    """The training stage of the run's kind. The model's parameters are meta tensors, its buffers are made of ones.

    A stage may read the model's statistics of the embeddings when it draws a batch.
    """
    model = build_model(part, run, inputs)
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.ones_like(buffer, device="cpu"))
    return resolve(find_kind(part, run.kind).stage)(run, model, inputs, torch.device("cpu"))


def draw_batch(stage: PartStage, size: int) -> TensorBatch:
    return stage.batch(StepDraw(torch.arange(size), torch.Generator().manual_seed(0), seed=0, step=0))


def tensors_in(batch: Any) -> list[Tensor]:
    """All tensors of a batch, those of nested batches included."""
    if isinstance(batch, TensorBatch):
        return [tensor for value in vars(batch).values() for tensor in tensors_in(value)]
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def count_numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


@contextlib.contextmanager
def watch_blocks(
    model: nn.Module, enter: Callable[[nn.Module, list[Tensor]], None], leave: Callable[[], None]
) -> Iterator[None]:
    """Call enter(block, inputs) before the forward pass of each block, and leave() after it."""

    def before(block: nn.Module, args: tuple, kwargs: dict) -> None:
        enter(block, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])

    def after(*_: Any) -> None:
        leave()

    hooks = []
    for block in repeated_blocks(model):
        hooks.append(block.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(block.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- operations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepOperations:
    forward: int
    training: int
    """Forward and backward pass together."""
    in_blocks: int
    """The blocks' forward passes."""


def count_operations(stage: PartStage, batch: TensorBatch) -> StepOperations:
    """Count the floating-point operations of a step on a batch of meta tensors; they are the same on all devices."""
    in_blocks = 0

    def enter(_: nn.Module, __: list[Tensor]) -> None:
        nonlocal in_blocks
        in_blocks -= counter.get_total_flops()

    def leave() -> None:
        nonlocal in_blocks
        in_blocks += counter.get_total_flops()

    with torch.device("meta"), counting_operations() as counter:
        with PretendedDevice("cpu"), watch_blocks(stage.model, enter, leave):
            loss = stage.objective(batch)
        forward = counter.get_total_flops()
        loss.backward()
        return StepOperations(forward, counter.get_total_flops(), in_blocks)


@contextlib.contextmanager
def counting_operations() -> Iterator[FlopCounterMode]:
    """Count floating-point operations, those of fused attention as if it were plain products.

    Its backward pass then takes twice as many as its forward pass. The kernel computes the scores once more, which does
    not count as work, as recomputation does not.
    """
    backward = torch.ops.aten._scaled_dot_product_efficient_attention_backward
    with FlopCounterMode(display=False, custom_mapping={backward: _attention_backward}) as counter:
        yield counter


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return 2 * sdpa_flop_count(query, key, value)


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedBytes:
    """Bytes that a forward pass keeps for its backward pass.

    Each storage counts once, in the block that saved it first. Weights do not count, but their casts to bfloat16 do.
    """

    total: int
    recomputed: int
    """The same where each block keeps its inputs alone."""
    by_block: dict[nn.Module, int]


class SavedTensor:
    """A tensor that autograd keeps for the backward pass, and the block whose forward pass saved it, if any."""

    def __init__(self, tensor: Tensor, block: nn.Module | None):
        self.tensor = tensor.detach()  # with its graph it would keep itself alive
        self.block = block


def count_saved(stage: PartStage, batch: TensorBatch, device: str, dtype: torch.dtype) -> SavedBytes:
    """Count what a step keeps of a batch of meta tensors on a device of that type."""
    references: list[weakref.ref[SavedTensor]] = []
    block_inputs: list[Tensor] = []
    current: nn.Module | None = None

    def enter(block: nn.Module, inputs: list[Tensor]) -> None:
        nonlocal current
        current = block
        block_inputs.extend(tensor.detach() for tensor in inputs)

    def leave() -> None:
        nonlocal current
        current = None

    def save(tensor: Tensor) -> SavedTensor:
        saved = SavedTensor(tensor, current)
        references.append(weakref.ref(saved))
        return saved

    with (
        torch.device("meta"),
        PretendedDevice(device, dtype),
        watch_blocks(stage.model, enter, leave),
        torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor),
    ):
        loss = stage.objective(batch)
    alive = [saved for saved in (reference() for reference in references) if saved is not None]
    del loss  # which held the graph, and with it what is alive
    weights = [*stage.objective.parameters(), *stage.objective.buffers()]
    storages = {id_of_storage(weight) for weight in weights}
    by_block: dict[nn.Module | None, int] = {}
    for saved in alive:
        by_block[saved.block] = by_block.get(saved.block, 0) + new_bytes(saved.tensor, storages)
    storages = {id_of_storage(weight) for weight in weights}
    outside = [saved.tensor for saved in alive if saved.block is None]
    return SavedBytes(
        total=sum(by_block.values()),
        recomputed=sum(new_bytes(tensor, storages) for tensor in (*outside, *block_inputs)),
        by_block={block: size for block, size in by_block.items() if block is not None},
    )


def id_of_storage(tensor: Tensor) -> int:
    """A number that is the storage's own while it lives; meta tensors have no address."""
    return tensor.untyped_storage()._cdata


def new_bytes(tensor: Tensor, storages: set[int]) -> int:
    """Bytes of the tensor's storage, which joins the storages; 0 if it is one of them."""
    storage = id_of_storage(tensor)
    if storage in storages:
        return 0
    storages.add(storage)
    return tensor.untyped_storage().nbytes()
