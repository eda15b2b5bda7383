"""Options of the planner: the sizes and the training of each part in the registry, and what there is to train on."""

from dataclasses import Field, dataclass, field, fields, make_dataclass, replace
from typing import Any, Literal, Self, get_type_hints

from stages.plan.machine import DEVICES
from stages.run_options import FrozenCLIPRun, PartRun
from unclip.errors import UserError
from unclip.fields import bounded, field_docs
from unclip.registry import PARTS, default_kind, find_kind, resolve

NOT_PLANNED = {item.name for item in fields(FrozenCLIPRun)} | {"sampling", "evaluate_on"}
"""Fields of a trainer's options that change nothing in the plan."""


@dataclass(frozen=True)
class PartOptions:
    """Options of every part. A subclass adds those that the trainer of its kind has, such as `model`."""

    kind: str = ""
    """Kind of the part, of those in unclip/registry.py."""
    steps: int = bounded(1000, 1, 10**9)
    """Optimiser steps."""
    batch_size: int = bounded(32, 1, 65_536)
    """Examples per step, over all devices."""
    moments: int = bounded(2, 1, 2)
    """Numbers that the optimiser keeps of each parameter: 2 for AdamW, 1 for Muon."""

    @classmethod
    def of(cls, run: PartRun) -> Self:
        """The options whose defaults are a trainer's preset."""
        planned = [item for item in fields(run) if item.name not in NOT_PLANNED]
        types = get_type_hints(type(run), include_extras=True)
        docs = field_docs(type(run))
        columns = [(item.name, types[item.name], _with_help(item, docs.get(item.name, ""))) for item in planned]
        subclass = make_dataclass(f"{type(run).__name__}Options", columns, bases=(cls,), frozen=True)
        return subclass(
            kind=run.kind,
            steps=run.train.steps,
            batch_size=run.train.batch_size,
            moments=1 if run.train.muon_lr else 2,
            **{item.name: getattr(run, item.name) for item in planned},
        )

    def run(self, part: str, preset: str) -> PartRun:
        """The trainer's options: the preset's, changed as these say."""
        run = find_presets(part, self.kind)[preset]
        changes = {item.name: getattr(self, item.name) for item in fields(run) if item.name not in NOT_PLANNED}
        return replace(run, **changes)


def _with_help(item: Field, text: str) -> Any:
    """The field of another class with the same bounds; its help text is in the metadata."""
    return field(default=item.default, default_factory=item.default_factory, metadata={**item.metadata, "help": text})


@dataclass(frozen=True)
class PlanOptions:
    """Options of the whole plan. A subclass has a field of `PartOptions` for every part in the registry."""

    preset: str = "quick"
    """Defaults of the parts' options: tiny, quick, small, base or paper."""
    also: tuple[str, ...] = ()
    """Optional parts to plan too, such as fast_decoder or upsampler."""
    images: str = "51374"
    """Captioned images to train on, such as 650M."""
    gpus: int = bounded(1, 1, 10**6)
    """Devices in all."""
    device: Literal[*DEVICES] = "cpu"
    """Kind of device; cpu is two cores of a server."""
    mfu: float = bounded(0.0, 0, 1)
    """Share of the device's peak rate that training reaches; 0 for 0.7 on a CPU and 0.4 elsewhere."""
    size: int = bounded(0, 0, 1024)
    """Height and width of the images that the decoder draws, in colour; 0 for the preset's."""
    tokens: int = bounded(0, 0, 4096)
    """Tokens of a caption; 0 for as many as the text tower reads."""
    epochs: float = bounded(0.0, 0, 10**6)
    """Times that each image is seen, in place of the parts' steps; 0 for those."""
    disk: str = "30T"
    """Bytes of disk for decoded images and the cache of embeddings."""
    ram: str = "250G"
    """Bytes of main memory per device, each of which has a process of its own."""
    loader: str = "200M"
    """Bytes of images, cached embeddings and noise that a thread draws for its batches per second; beside a GPU eight
    threads draw at once."""

    @property
    def parts(self) -> dict[str, PartOptions]:
        """The options of the parts to plan, in the registry's order."""
        return {part: getattr(self, part) for part, row in PARTS.items() if not row.optional or part in self.also}

    def __post_init__(self):
        optional = [part for part, row in PARTS.items() if row.optional]
        if unknown := set(self.also) - set(optional):
            raise UserError(f"--also takes the optional parts {', '.join(optional)}, not {min(unknown)}")


def plan_presets(kinds: dict[str, str | None] | None = None) -> dict[str, PlanOptions]:
    """The options of the planner by the names of the presets that all parts share.

    Args:
        kinds: the kinds of some parts; the default kind of all others.
    """
    kinds = kinds or {}
    presets = {part: find_presets(part, kinds.get(part) or default_kind(part)) for part in PARTS}
    names = [name for name in presets["clip"] if all(name in of_part for of_part in presets.values())]
    return {name: _options(name, {part: presets[part][name] for part in PARTS}) for name in names}


def check_planned(options: PlanOptions, preset: PlanOptions) -> None:
    """Raise UserError for options of an optional part that is not planned: those that differ from the preset's."""
    for part in PARTS.keys() - options.parts.keys():
        if getattr(options, part) != getattr(preset, part):
            raise UserError(f"the {part} is not planned, so that its options change nothing; give --also {part} too")


def find_presets(part: str, kind: str) -> dict[str, PartRun]:
    """The presets of a part's trainer."""
    return resolve(find_kind(part, kind).presets)


def _options(preset: str, runs: dict[str, PartRun]) -> PlanOptions:
    options = {part: PartOptions.of(run) for part, run in runs.items()}
    columns = []
    for part, part_options in options.items():
        metadata = {"help": f"Sizes and training of the {part}."}
        columns.append((part, type(part_options), field(default=part_options, metadata=metadata)))
    return make_dataclass("RegistryOptions", columns, bases=(PlanOptions,), frozen=True)(preset=preset)
