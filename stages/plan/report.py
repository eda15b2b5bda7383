"""Puts the plan of the three stages together."""

import math
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Self, TypeVar

from stages.clip import AugmentConfig, CLIPRun, fitting_patch
from stages.decoder import DecoderRun
from stages.plan import costs
from stages.plan.layout import Budget, Way, layouts
from stages.plan.limits import Example, Limit, Surroundings, cached, limits
from stages.plan.machine import DEVICES, count, duration, short
from stages.prior import PriorRun
from unclip.clip import CLIPConfig, VisionConfig
from unclip.decoder import DecoderConfig
from unclip.errors import UserError
from unclip.fields import bounded, check
from unclip.prior import PriorConfig

C = TypeVar("C")


@dataclass(frozen=True)
class StageOptions(Generic[C]):
    model: C
    steps: int = bounded(1000, 1, 10**9)
    """Optimiser steps."""
    batch_size: int = bounded(32, 1, 65_536)
    """Examples per step, over all devices."""
    moments: int = bounded(2, 1, 2)
    """Numbers that the optimiser keeps of each parameter: 2 for AdamW, 1 for Muon."""

    @classmethod
    def of(cls, run: Any) -> Self:
        """A trainer's preset."""
        return cls(run.model, run.train.steps, run.train.batch_size, 1 if run.train.muon_lr else 2)


@dataclass(frozen=True)
class CLIPOptions(StageOptions[CLIPConfig]):
    keep_patches: float = bounded(1.0, 0.01, 1)
    """Share of its patches that an image is seen by in training: --augment.keep-patches of train_clip.py."""

    @classmethod
    def of(cls, run: CLIPRun) -> Self:
        return replace(super().of(run), keep_patches=run.augment.keep_patches)

    def kept(self, vision: VisionConfig) -> int:
        """Patches that an image is seen by."""
        return AugmentConfig(keep_patches=self.keep_patches).patches(costs.patches(vision))


@dataclass(frozen=True)
class PlanOptions:
    clip: CLIPOptions
    """Sizes of CLIP, and likewise below."""
    prior: StageOptions[PriorConfig]
    decoder: StageOptions[DecoderConfig]
    preset: str = "quick"
    """Defaults of the three stages' options: tiny, quick, small, base or paper."""
    images: str = "51374"
    """Captioned images to train on, such as 650M."""
    gpus: int = bounded(1, 1, 10**6)
    """Devices in all."""
    device: Literal[*DEVICES] = "cpu"
    """Kind of device; cpu is two cores of a server."""
    mfu: float = bounded(0.0, 0, 1)
    """Share of the device's peak rate that training reaches; 0 for 0.7 on a CPU and 0.4 elsewhere."""
    size: int = bounded(0, 0, 1024)
    """Height and width of the images, in colour; 0 for the preset's."""
    vocab_size: int = bounded(1024, 258, 2**20)
    """Entries of the tokenizer."""
    tokens: int = bounded(0, 0, 4096)
    """Tokens of a caption; 0 for as many as the text tower reads."""
    epochs: float = bounded(0.0, 0, 10**6)
    """Passes over the images, in place of the stages' steps; 0 for those."""
    disk: str = "30T"
    """Bytes of disk for decoded images and the cache of embeddings."""
    ram: str = "250G"
    """Bytes of main memory per device, each of which has a process of its own."""
    loader: str = "200M"
    """Bytes of images, cached encodings and noise that a thread draws for its batches per second; beside a GPU eight
    threads draw at once."""

    @classmethod
    def of(cls, clip: CLIPRun, prior: PriorRun, decoder: DecoderRun) -> Self:
        """The trainers' presets of one name."""
        stages = CLIPOptions.of(clip), StageOptions.of(prior), StageOptions.of(decoder)
        return cls(*stages, preset=clip.preset, vocab_size=clip.vocab_size)


def configs(options: PlanOptions) -> tuple[CLIPConfig, PriorConfig, DecoderConfig]:
    """The models' configs as the trainers would complete them from the data and from CLIP."""
    clip, prior, decoder = options.clip.model, options.prior.model, options.decoder.model
    vision = clip.vision
    if options.size:
        images = {"image_size": options.size, "channels": 3}
        vision = replace(vision, **images, patch_size=fitting_patch(vision.patch_size, options.size))
        decoder = replace(decoder, **images)
    clip = replace(clip, vision=vision, text=replace(clip.text, vocab_size=options.vocab_size))
    return (
        clip,
        replace(prior, embed_dim=clip.embed_dim, text_width=clip.text.width, context=clip.text.context),
        replace(decoder, embed_dim=clip.embed_dim, text_width=clip.text.width),
    )


def budgets(options: PlanOptions) -> list[Budget]:
    """Of the three stages, in their order."""
    clip, prior, decoder = configs(options)
    tokens, device = caption_tokens(options), DEVICES[options.device]
    models = {
        "clip": costs.clip(clip, tokens, options.clip.kept(clip.vision)),
        "prior": costs.prior(prior, tokens),
        "decoder": costs.decoder(decoder, tokens),
    }
    seen = options.epochs * count(options.images, "--images")
    found = []
    for name, model in models.items():
        stage: StageOptions = getattr(options, name)
        steps = math.ceil(seen / stage.batch_size) if seen else stage.steps
        if stage.batch_size % options.gpus:
            raise UserError(f"--{name}.batch-size {stage.batch_size} is not a multiple of --gpus {options.gpus}")
        sizes = (steps, stage.batch_size, stage.moments)
        found.append(Budget(name, model, *sizes, options.gpus, device, options.mfu or device.mfu))
    return found


def caption_tokens(options: PlanOptions) -> int:
    context = options.clip.model.text.context
    return min(options.tokens or context, context)


def examples(options: PlanOptions) -> list[Example]:
    """Bytes of an image of the three stages, in their order."""
    clip, prior, decoder = configs(options)
    tokens = caption_tokens(options)
    read = 4 * (clip.embed_dim + tokens * clip.text.width)  # of the cache, for a step
    noise = 4 * decoder.channels * decoder.image_size**2
    pixels = [config.channels * config.image_size**2 for config in (clip.vision, decoder)]
    return [
        Example(pixels=pixels[0], tokens=8 * clip.text.context),
        Example(cached=cached(clip, tokens), drawn=read + 8 * prior.embed_dim),
        Example(pixels=pixels[1], drawn=read + noise),
    ]


def plan(options: PlanOptions) -> str:
    """The report. Raises UserError for numbers that cannot be read, or sizes that no model has."""
    images = count(options.images, "--images")
    around = Surroundings(*(count(getattr(options, name), f"--{name}") for name in ("disk", "ram", "loader")))
    for config in configs(options):
        check(config)
    stages = budgets(options)
    found = [limit for pair in zip(stages, examples(options), strict=True) for limit in limits(*pair, images, around)]
    found.sort(key=lambda limit: limit.ratio, reverse=True)
    sections = [heading(options, images), table(stages, images), advice(stages, options, images), verdict(found)]
    return "\n\n".join(sections)


def heading(options: PlanOptions, images: float) -> str:
    device, (clip, _, decoder) = DEVICES[options.device], configs(options)
    kind = "bfloat16" if device.width == 2 else "float32"
    lines = [
        f"{options.gpus} x {options.device}: {short(device.peak, 'FLOP/s')} in {kind}, of which "
        f"{options.mfu or device.mfu:.0%} are assumed to be reached, and {short(device.memory, 'B')} of memory",
        f"{short(images)} images with a caption of {caption_tokens(options)} tokens each",
    ]
    if decoder.image_size < clip.vision.image_size:
        lines.append(
            f"the decoder draws {decoder.image_size}x{decoder.image_size} pixels; upsamplers, such as the paper's two "
            "(0.7B and 0.3B parameters), are not part of this project"
        )
    return "\n".join(lines)


def table(stages: list[Budget], images: float) -> str:
    """A column for each stage."""
    rows = [
        ("", [stage.name for stage in stages]),
        ("parameters", [short(stage.model.total.parameters) for stage in stages]),
        ("operations per image, forward", [short(stage.model.total.operations, "FLOP") for stage in stages]),
        ("  forward and backward", [short(stage.operations(Way()), "FLOP") for stage in stages]),
        ("  with recomputation", [short(stage.operations(Way(recomputed=True)), "FLOP") for stage in stages]),
        ("batch", [f"{stage.batch_size}" for stage in stages]),
        ("  per device", [f"{stage.share}" for stage in stages]),
        ("steps", [f"{stage.steps}" for stage in stages]),
        ("passes over the images", [f"{stage.steps * stage.batch_size / images:.3g}" for stage in stages]),
        ("time", [stage.duration(Way()) for stage in stages]),
        ("  with recomputation", [stage.duration(Way(recomputed=True)) for stage in stages]),
    ]
    ways = layouts(stages[0].devices).items()
    rows += [(f"memory per device: {name}", [cell(stage, way) for stage in stages]) for name, way in ways]
    return "\n".join(f"{name:<38}" + "".join(f"{one:>22}" for one in cells).rstrip() for name, cells in rows)


def cell(stage: Budget, way: Way) -> str:
    """The memory of a layout; where it is too much, also in how many parts the device's share fits."""
    needed = short(stage.memory(way), "B")
    if stage.fits(way):
        return needed
    parts = stage.accumulated(way.sharded, way.recomputed)
    return f"{needed} (K={parts.accumulate} fits)" if parts else f"{needed} (no K fits)"


def advice(stages: list[Budget], options: PlanOptions, images: float) -> str:
    """The commands that train in the fewest operations."""
    lines = ["What fits, in the fewest operations (K in the table is --train.accumulate):"]
    for stage in stages:
        if (way := stage.best()) is None:
            lines.append(f"  {stage.name}: nothing; take more devices, ones with more memory, or smaller sizes")
            continue
        nodes, each = math.ceil(stage.devices / 8), min(8, stage.devices)
        torchrun = f"torchrun {f'--nnodes {nodes} ' * (nodes > 1)}--nproc-per-node {each}"
        launch = "python" if stage.devices == 1 else torchrun
        figures = f"{short(stage.memory(way), 'B')}, {stage.duration(way)}"
        lines.append(
            f"  {launch} train_{stage.name}.py --preset {options.preset} {way.options}".rstrip() + f"    # {figures}"
        )
    config, clip = configs(options)[0], stages[0]
    whole = costs.clip(config, caption_tokens(options)).total.operations  # all patches of an image
    embedding = images * whole / (clip.device.peak * clip.mfu)
    lines.append(f"The cache of embeddings, before the prior, takes {duration(embedding)} of one device's time.")
    return "\n".join(lines)


def verdict(found: list[Limit]) -> str:
    """The limits, what breaks first at the top."""
    first = found[0]
    broken = f"What breaks first: {first.stage}, {first.what}, {first.ratio:.3g} times what there is."
    held = f"Nothing breaks; the nearest limit: {first.stage}, {first.what}, at {first.ratio:.3g} of what there is."
    return "\n".join([broken if first.ratio > 1 else held, *map(str, found)])
