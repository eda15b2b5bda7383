"""Puts the plan of all parts together."""

import math
from dataclasses import dataclass

from stages.inputs import CLIPInputs, Inputs
from stages.plan.counting import build_model, count_embedding, count_part
from stages.plan.layout import Budget, Layout, layouts
from stages.plan.limits import Limit, Stored, Surroundings, cache_bytes, find_limits
from stages.plan.loading import Embeddings, Reading, row_bytes
from stages.plan.machine import DEVICES, count, duration, short
from stages.plan.plan_options import PlanOptions
from stages.plan.synthetic import make_clip_inputs, make_inputs
from stages.run_options import PartRun
from unclip.clip import CLIPConfig
from unclip.errors import UserError
from unclip.registry import PARTS, default_kind

PRESET_SIZE = 28
"""Pixels per side of the grey images that presets are made for, Fashion-MNIST's, unless they name another size."""


@dataclass(frozen=True)
class PartPlan:
    """A part as its trainer would begin with it: its options, and inputs of the right shapes."""

    name: str
    run: PartRun
    inputs: CLIPInputs | Inputs


def plan_parts(options: PlanOptions) -> dict[str, PartPlan]:
    """All parts in the registry's order, on images and captions as the options have them."""
    runs = {part: part_options.run(part, options.preset) for part, part_options in options.parts.items()}
    clip_run = runs.pop("clip")
    size, channels = image_shape(options, clip_run)
    clip_inputs = make_clip_inputs(size, channels, clip_run.vocab_size, options.tokens)
    parts = {"clip": PartPlan("clip", clip_run, clip_inputs)}
    clip: CLIPConfig = build_model("clip", clip_run, clip_inputs).config
    for part, run in runs.items():
        shape = image_shape(options, run, drawn=runs["decoder"].data.size)
        inputs = make_inputs(clip, *shape, caption_tokens(options, clip))
        parts[part] = PartPlan(part, run, inputs)
    return parts


def image_shape(options: PlanOptions, run: PartRun, drawn: int | None = None) -> tuple[int, int]:
    """Height and width, and channels. Images of a size that is asked for are in colour.

    Args:
        drawn: the size that the decoder's preset names, for a preset that names none.
    """
    size = options.size or run.data.size or drawn
    return (run.image_scale * (size or PRESET_SIZE), 3 if size else 1)


def caption_tokens(options: PlanOptions, clip: CLIPConfig) -> int:
    """Tokens of each caption."""
    return min(options.tokens or clip.text.context, clip.text.context)


def make_budgets(options: PlanOptions, parts: dict[str, PartPlan]) -> dict[str, Budget]:
    """The costs and settings of each part, on the devices of the options."""
    device = DEVICES[options.device]
    seen = options.epochs * count(options.images, "--images")
    budgets = {}
    for name, part in parts.items():
        settings = options.parts[name]
        if settings.batch_size % options.gpus:
            raise UserError(f"--{name}.batch-size {settings.batch_size} is not a multiple of --gpus {options.gpus}")
        budgets[name] = Budget(
            name=name,
            kind=settings.kind,
            cost=count_part(name, part.run, part.inputs, device.type, device.dtype),
            steps=math.ceil(seen / settings.batch_size) if seen else settings.steps,
            batch_size=settings.batch_size,
            moments=settings.moments,
            devices=options.gpus,
            device=device,
            mfu=options.mfu or device.mfu,
        )
    return budgets


def stored_bytes(parts: dict[str, PartPlan], tokens: int) -> dict[str, Stored]:
    """Bytes to store of an image: its tokens for CLIP, its cached embeddings for the first part that reads its size."""
    clip, *others = parts
    config = parts[others[0]].inputs.clip
    stored = {clip: Stored(tokens=8 * config.text.context)}
    sizes = set()
    for part in others:
        size = parts[part].inputs.shapes.image_size
        stored[part] = Stored() if size in sizes else Stored(cache=cache_bytes(config, tokens))
        sizes.add(size)
    return stored


def plan(options: PlanOptions) -> str:
    """The report. Raises UserError for numbers that cannot be read, or sizes that no model has."""
    images = count(options.images, "--images")
    around = Surroundings(
        disk=count(options.disk, "--disk"),
        ram=count(options.ram, "--ram"),
        loader=count(options.loader, "--loader"),
    )
    parts = plan_parts(options)
    tokens = caption_tokens(options, parts["prior"].inputs.clip)
    budgets = make_budgets(options, parts)
    stored = stored_bytes(parts, tokens)
    limits = [limit for name in parts for limit in find_limits(budgets[name], stored[name], images, around)]
    limits.sort(key=lambda limit: limit.ratio, reverse=True)
    stages = list(budgets.values())
    embeddings = Embeddings(
        images=images,
        row=cache_bytes(parts["prior"].inputs.clip, tokens),
        operations=count_embedding(parts["clip"].run, parts["clip"].inputs),
        sets=sum(part.cache > 0 for part in stored.values()),
    )
    size = max(part.inputs.shapes.image_size for part in parts.values())
    sections = [
        heading(options, parts, images, tokens),
        table(stages, images),
        advice(stages, options, images * embeddings.operations),
        streamed([Reading(budget, size) for budget in stages], embeddings, around.disk),
        verdict(limits),
    ]
    return "\n\n".join(sections)


def heading(options: PlanOptions, parts: dict[str, PartPlan], images: float, tokens: int) -> str:
    device = DEVICES[options.device]
    number = "bfloat16" if device.width == 2 else "float32"
    lines = [
        f"{options.gpus} x {options.device}: {short(device.peak, 'FLOP/s')} in {number}, of which "
        f"{options.mfu or device.mfu:.0%} are assumed to be reached, and {short(device.memory, 'B')} of memory",
        f"{short(images)} images with a caption of {tokens} tokens each",
    ]
    size = parts["decoder"].inputs.shapes.image_size
    if size < parts["clip"].inputs.shapes.image_size:
        lines.append(
            f"the decoder draws {size}x{size} pixels; the paper's two upsamplers have 0.7B and 0.3B parameters, and "
            "one of ours is planned by --also upsampler"
        )
    return "\n".join(lines)


def table(budgets: list[Budget], images: float) -> str:
    """A column for each part."""
    plain = Layout()
    recomputed = Layout(recomputed=True)
    rows = [
        ("", [budget.name for budget in budgets]),
        ("parameters", [short(budget.cost.parameters) for budget in budgets]),
        ("operations per image, forward", [short(budget.cost.operations, "FLOP") for budget in budgets]),
        ("  forward and backward", [short(budget.operations(plain), "FLOP") for budget in budgets]),
        ("  with recomputation", [short(budget.operations(recomputed), "FLOP") for budget in budgets]),
        ("batch", [f"{budget.batch_size}" for budget in budgets]),
        ("  per device", [f"{budget.share}" for budget in budgets]),
        ("steps", [f"{budget.steps}" for budget in budgets]),
        ("epochs", [f"{budget.steps * budget.batch_size / images:.3g}" for budget in budgets]),
        ("time", [budget.duration(plain) for budget in budgets]),
        ("  with recomputation", [budget.duration(recomputed) for budget in budgets]),
    ]
    for name, layout in layouts(budgets[0].devices).items():
        rows.append((f"memory per device: {name}", [memory_cell(budget, layout) for budget in budgets]))
    return columns(rows)


def columns(rows: list[tuple[str, list[str]]]) -> str:
    return "\n".join(f"{name:<38}" + "".join(f"{cell:>22}" for cell in cells).rstrip() for name, cells in rows)


def memory_cell(budget: Budget, layout: Layout) -> str:
    """The memory of a layout; where it is too much, also in how many parts the device's share fits."""
    needed = short(budget.memory(layout), "B")
    if budget.fits(layout):
        return needed
    parts = budget.accumulated(layout.sharded, layout.recomputed)
    return f"{needed} (K={parts.accumulate} fits)" if parts else f"{needed} (no K fits)"


def advice(budgets: list[Budget], options: PlanOptions, embedding: float) -> str:
    """The commands that train in the fewest operations, and the time for `embedding` operations ahead of the prior."""
    lines = ["What fits, in the fewest operations (K in the table is --train.accumulate):"]
    for budget in budgets:
        layout = budget.best()
        if layout is None:
            lines.append(f"  {budget.name}: nothing; take more devices, ones with more memory, or smaller sizes")
            continue
        figures = f"{short(budget.memory(layout), 'B')}, {budget.duration(layout)}"
        command = f"{training_command(budget, options.preset)} {layout.options}".rstrip()
        lines.append(f"  {command}    # {figures}")
    clip = budgets[0]
    seconds = embedding / (clip.device.peak * clip.mfu)
    lines.append(f"The cache of embeddings, before the prior, takes {duration(seconds)} of one device's time.")
    return "\n".join(lines)


def streamed(readings: list[Reading], embeddings: Embeddings, disk: float) -> str:
    """The reading of a stream, a column for each part, and which embeddings are cheaper."""
    first, *others = [reading.budget for reading in readings]
    size = readings[0].size
    read = [0.0, *(reading.rate * embeddings.row for reading in readings[1:])]
    rows = [
        ("", [reading.budget.name for reading in readings]),
        ("rows per second", [short(reading.rate) for reading in readings]),
        ("loader cores, in all", [f"{reading.cores:.3g}" for reading in readings]),
        ("  --data.workers", [f"{reading.workers}" for reading in readings]),
        ("network: shards", [short(reading.network, "B/s") for reading in readings]),
        ("  stored embeddings", [short(number, "B/s") if number else "-" for number in read]),
    ]
    steps = sum(budget.steps * budget.seconds(budget.best() or Layout()) for budget in (first, *others))
    stored = embeddings.stored_seconds(first)
    online = embeddings.online_seconds(others)
    choice, why = embeddings.cheaper(others, disk)
    shards = short(embeddings.images * row_bytes(size), "B")
    lines = [
        f"Read by --data.stream, from shards of {size}x{size} JPEG files, {shards} in all:",
        columns(rows),
        f"--data.embed stored takes {short(embeddings.stored_bytes, 'B')} of {short(disk, 'B')} and "
        f"{duration(stored)} beforehand, {duration(steps + stored)} in all; online takes {duration(online)} beside the "
        f"steps, {duration(steps + online)} in all.",
        f"Cheaper: --data.embed {choice}, as {why}.",
    ]
    return "\n".join(lines)


def training_command(budget: Budget, preset: str) -> str:
    nodes = math.ceil(budget.devices / 8)
    per_node = min(8, budget.devices)
    torchrun = f"torchrun {f'--nnodes {nodes} ' * (nodes > 1)}--nproc-per-node {per_node}"
    launcher = "python" if budget.devices == 1 else torchrun
    script = f"-m stages.train {budget.name}" if PARTS[budget.name].optional else f"train_{budget.name}.py"
    kind = "" if budget.kind == default_kind(budget.name) else f" --kind {budget.kind}"
    return f"{launcher} {script}{kind} --preset {preset}"


def verdict(limits: list[Limit]) -> str:
    """The limits, those that break first at the top."""
    first = limits[0]
    broken = f"What breaks first: {first.part}, {first.what}, {first.ratio:.3g} times what there is."
    held = f"Nothing breaks; the nearest limit: {first.part}, {first.what}, at {first.ratio:.3g} of what there is."
    return "\n".join([broken if first.ratio > 1 else held, *map(str, limits)])
