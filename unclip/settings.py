"""How to sample. Kept apart from the models so that `sample.py --help` need not import torch."""

import operator
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any, Literal, Self, get_type_hints

from unclip.errors import UserError, quantity, shown
from unclip.fields import bounded, check, choice, field_docs
from unclip.foreign_names import explain_unknown
from unclip.registry import SAMPLERS

Device = Literal["auto", "cpu", "cuda", "mps"]
SamplerName = Literal[*SAMPLERS]  # type: ignore[valid-type]
Spacing = Literal["even", "karras"]
MAX_SEED = 2**63 - 1  # the largest that fits an int64 array
SEED_STEP = 2**40
"""Distance from a sample's seed to that of its next candidate image: nobody counts seeds up to there."""


def check_seeds(seed: int, n: int) -> None:
    """Raise UserError unless seed .. seed + n - 1 are all usable."""
    if not 0 <= seed <= MAX_SEED - n:
        raise UserError(f"seed must not be negative or reach 2**63, but is {seed}")


def seed_list(seed: int | Sequence[int], n: int) -> list[int]:
    """n seeds: those from `seed` on, or the n that are given, as integers of Python, numpy or torch.

    Raises UserError for another number of seeds, or for one out of range.
    """
    seed = list(seed) if isinstance(seed, Iterator) else seed
    try:
        numbers: Any = [seed] if is_single(seed) else seed
        seeds = [operator.index(number) for number in numbers]
    except (TypeError, ValueError):
        raise UserError(f"seed must be an integer or a list of them, not {shown(seed)}") from None
    if is_single(seed):
        check_seeds(seeds[0], n)
        return list(range(seeds[0], seeds[0] + n))
    if len(seeds) != n:
        raise UserError(f"{quantity(len(seeds), 'seed')} cannot go with {quantity(n, 'image')}")
    for number in seeds:
        check_seeds(number, 1)
    return seeds


def later_seeds(seeds: Sequence[int], i: int) -> list[int]:
    """The seeds of the samples' i-th further candidates or attempts; for i = 0 their own."""
    return [(seed + i * SEED_STEP) % (MAX_SEED + 1) for seed in seeds]


def is_single(seed: Any) -> bool:
    """Whether a seed is one number, of any library, and not several."""
    return not hasattr(seed, "__iter__") or isinstance(seed, str) or getattr(seed, "ndim", 1) == 0


class PartSettings:
    """The settings of one part of a pipeline: a frozen dataclass in which each has a default.

    As options of a program, and in messages, the fields are named with `prefix` before them. Raises UserError for a
    value out of range.
    """

    prefix = ""

    def __post_init__(self):
        check(self, self.prefix)

    def override(self, **settings: Any) -> Self:
        """The same with other values for some of the fields."""
        return replace(self, **settings)  # type: ignore[type-var]

    def check_read_by(self, model: Any, part: str) -> None:
        """Raise UserError for a setting that few kinds read, if it is not at its default and the model is not of those.

        Such a model's class names the settings in `reads`.
        """
        for item in fields(self):  # type: ignore[arg-type]
            is_read = not item.metadata.get("few_read") or item.name in getattr(model, "reads", ())
            value = getattr(self, item.name)
            if not is_read and value != item.default:
                raise UserError(
                    f"{self.prefix}{item.name} must be {item.default}, as a {part} of this kind does not read it, not "
                    f"{shown(value)}"
                )


@dataclass(frozen=True)
class PriorSettings(PartSettings):
    """How to draw from the prior."""

    prefix = "prior_"

    steps: int = bounded(20, 1, 10_000)
    """Prior steps per embedding (dpmpp)."""
    spacing: Spacing = "even"
    """Spacing of the prior's steps: even in time, or karras, dense where there is little noise. Presets choose karras;
    a pipeline that names none was trained when all steps were even."""
    guidance: float = bounded(1.0, 0, 100)
    """Prior guidance scale: 1 is none, more follows the caption closer at the price of variety."""
    num_candidates: int = bounded(4, 1, 256)
    """Candidate image embeddings drawn for each sample, of which reranking keeps one: see the threshold. Only one is
    drawn if the first of every caption is kept anyway."""
    threshold: float = bounded(0.85, 0, 1)
    """For the caption of a class, reranking keeps the first candidate to which CLIP gives at least this probability
    among the captions of all classes, or the most probable one if none reaches it; 0 keeps the first. For any other
    caption it keeps the most probable one; without classes, the one closest to the text."""
    redraws: int = bounded(0, 0, 255)
    """Times that an image of a class's caption is drawn anew, from another embedding, while CLIP gives the image itself
    less than image_threshold among the captions of all classes. If none reaches it, the most probable one is kept."""
    image_threshold: float = bounded(0.5, 0, 1)
    """See redraws."""
    temperature: float = bounded(1.0, 0.01, 10, few_read=True)
    """Temperature of an autoregressive prior: less than 1 makes likely embeddings likelier. Other kinds take 1 only."""
    top_share: float = bounded(1.0, 0.001, 1, few_read=True)
    """Share of the dot products of text and image, the highest, that an autoregressive prior draws from: 1 is all, the
    paper's is 0.5. Fewer follow the caption closer at the price of variety. Other kinds take 1 only."""


@dataclass(frozen=True)
class DecoderSettings(PartSettings):
    """How to draw from the decoder."""

    steps: int = bounded(10, 1, 10_000)
    """Decoder steps per image, from 1 to the decoder's timesteps."""
    guidance: float = bounded(2.5, 0, 100)
    """Decoder guidance scale: 1 is none, more follows the caption closer at the price of variety."""
    guidance_interval: tuple[float, float] = bounded((0.3, 0.8), 0, 1)
    """Guide the decoder only at these times, from 0, the clean image, to 1, pure noise."""
    sampler: SamplerName = choice("dpmpp", SAMPLERS)
    """Decoder sampler."""
    eta: float = bounded(0.0, 0, 1)
    """Noise of the ddim sampler: 0 is deterministic, 1 as noisy as ddpm."""
    spacing: Spacing = "karras"
    """Spacing of the decoder's steps: even in time, or karras, dense where there is little noise."""
    num_candidates: int = bounded(1, 1, 256)
    """Candidate images drawn for each embedding, each from noise of its own; the one whose embedding is closest to it
    is kept. More are truer to the embedding, and cost so many times as much. There is one candidate without an
    embedding, or from given noise."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            yield "guidance_interval", "be two ascending numbers in 0 .. 1"
        if self.eta and "eta" not in SAMPLERS[self.sampler].reads:
            readers = ", ".join(name for name, sampler in SAMPLERS.items() if "eta" in sampler.reads)
            yield "eta", f"be 0 for the {self.sampler} sampler (only {readers} reads it)"

    def override(self, **settings: Any) -> Self:
        """The same with other values. Another sampler does not take over the eta of this one."""
        if settings.get("sampler", self.sampler) != self.sampler:
            settings = {"eta": 0.0} | settings
        return replace(self, **settings)


@dataclass(frozen=True)
class FastDecoderSettings(PartSettings):
    """How to draw from the fast decoder, in pipelines that have one."""

    prefix = "fast_"

    steps: int = bounded(2, 0, 16)
    """Network calls of the fast decoder per image, if the pipeline has one. 0 draws with the decoder itself; so do
    the style faithful, and any setting of the decoder that is given without this one."""
    num_candidates: int = bounded(1, 1, 256)
    """The same for the fast decoder as num_candidates for the decoder."""
    levels: tuple[float, float] = bounded((1.5, 0.3), 0.02, 80)
    """Noise over signal of the second and of the last call of the fast decoder; those between are spaced evenly in the
    logarithm, and a single second call lies in their middle."""


@dataclass(frozen=True)
class UpsamplerSettings(PartSettings):
    """How to draw from the upsampler, in pipelines that have one."""

    upscale: Literal["all", "none"] = "all"
    """Enlarge all images, if the pipeline has an upsampler, or none."""
    upscale_steps: int = bounded(2, 1, 10_000)
    """Upsampler steps per image."""
    upscale_noise: float = bounded(0.03, 0.0, 10)
    """Noise over signal that is added to the small image. More hides the decoder's errors, and the image's details."""
    upscale_tile: int = bounded(1024, 16, 65_536)
    """Height and width of the tiles in which larger images are computed. They do not change the image."""


@dataclass(frozen=True)
class Sampling:
    """All settings of drawing. A pipeline carries its own in model_index.json; arguments of a call override them.

    A further part gets settings by one more field here, whose default is a `PartSettings`.
    """

    prior: PriorSettings = field(default_factory=PriorSettings)
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    fast_decoder: FastDecoderSettings = field(default_factory=FastDecoderSettings)
    upsampler: UpsamplerSettings = field(default_factory=UpsamplerSettings)
    batch_size: int = bounded(64, 1, 4096)
    """Images drawn at once; fewer need less memory. It does not change the images."""

    def __post_init__(self):
        check(self)

    def override(self, style: str = "clear", **settings: Any) -> "Sampling":
        """The same with other values, by the names of `SamplingOptions`; a setting overrides the style.

        Raises UserError for an unknown name.
        """
        if style not in list(STYLES):
            raise UserError(f"there is no style {shown(style)}; choose from {', '.join(STYLES)}")
        by_part: dict[str, dict[str, Any]] = defaultdict(dict)
        for option, value in (STYLES[style] | settings).items():
            if option not in SAMPLING_OPTIONS:
                raise UserError(explain_unknown(option, SAMPLING_OPTIONS))
            part, name = SAMPLING_OPTIONS[option]
            by_part[part][name] = plain(value)
        whole = by_part.pop("", {})
        return replace(self, **{part: getattr(self, part).override(**by_part[part]) for part in by_part}, **whole)

    def for_drawing(self, **settings: Any) -> "Sampling":
        """Override settings as the arguments of a drawing do: any of the decoder's own asks for the decoder to draw."""
        sets_decoder = any(SAMPLING_OPTIONS.get(option, ("",))[0] == "decoder" for option in settings)
        return self.override(**({"fast_steps": 0} if sets_decoder else {}) | settings)


def _options_of_parts() -> dict[str, tuple[str, str]]:
    options: dict[str, tuple[str, str]] = {}
    parts = {item.name: getattr(Sampling(), item.name) for item in fields(Sampling)}
    settings = {part: value for part, value in parts.items() if isinstance(value, PartSettings)}
    for part, value in sorted(settings.items(), key=lambda entry: entry[1].prefix):
        options |= {value.prefix + item.name: (part, item.name) for item in fields(value)}  # type: ignore[arg-type]
    return options | {name: ("", name) for name in parts if name not in settings}


SAMPLING_OPTIONS = _options_of_parts()
"""Option -> (part, name of its setting), as "prior_steps": ("prior", "steps"); the part of batch_size is ""."""


def check_parts(options: Iterable[str], parts: Collection[str], reader: str) -> None:
    """Raise UserError for the first option that is a setting of another part than those in `parts`.

    Args:
        reader: who has only these parts, and a verb, as in "this pipeline lacks".
    """
    for option in options:
        part, _ = SAMPLING_OPTIONS.get(option, ("", ""))
        if part and part not in parts:
            raise UserError(f"{option} is a setting of the {part}, which {reader}; leave it out")


def check_given(options: Iterable[str], models: Mapping[str, Any]) -> None:
    """Raise UserError for the first option that changes nothing in a pipeline.

    Args:
        models: part -> model. A model's class names in `ignores` the settings that its kind has no use for.
    """
    check_parts(options, models, "this pipeline lacks")
    for option in options:
        part, name = SAMPLING_OPTIONS.get(option, ("", ""))
        if name in getattr(models.get(part), "ignores", ()):
            raise UserError(f"{option} changes nothing, as a {part} of this kind does not read it; leave it out")


def plain(value: Any) -> Any:
    """numpy's and torch's numbers, and lists of numbers, as Python's numbers and tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


STYLES: dict[str, dict[str, Any]] = {
    "clear": {},
    "faithful": {
        "fast_num_candidates": 1,
        "fast_steps": 0,
        "guidance": 1,
        "num_candidates": 1,
        "prior_guidance": 1,
        "prior_num_candidates": 1,
        "prior_redraws": 0,
        "prior_temperature": 1,
        "prior_top_share": 1,
    },
}
"""Named settings over the pipeline's own.

clear changes nothing. faithful neither guides nor reranks, and draws with the decoder itself, as the fast one costs
variety. Its samples are as varied as the images that the models have learned; a Frechet distance measures those.
"""


def _flat_fields() -> Iterator[tuple[str, Any, Any]]:
    """Name, type and field of each option, for `dataclasses.make_dataclass`; help texts travel in the metadata."""
    style = "clear keeps the pipeline's own settings; faithful does not guide, rerank or draw fast: as varied as "
    yield "style", str, choice("clear", STYLES, help=f"{style}the data.")
    for option, (part, name) in SAMPLING_OPTIONS.items():
        owner = type(getattr(Sampling(), part)) if part else Sampling
        item = next(item for item in fields(owner) if item.name == name)
        metadata = {**item.metadata, "help": field_docs(owner).get(name)}
        yield option, get_type_hints(owner)[name], field(default=item.default, metadata=metadata)


@dataclass(frozen=True)
class SamplingOptions(make_dataclass("FlatSettings", _flat_fields(), frozen=True)):  # type: ignore[misc]
    """All settings side by side, as options of a program: the fields of `Sampling`'s parts, with a prefix where needed.

    The defaults are the library's; `of` makes those of a pipeline.
    """

    @classmethod
    def of(cls, sampling: Sampling, style: str = "clear", **others: Any) -> Self:
        """A pipeline's settings, in a style, as defaults; `others` are the fields of a subclass."""
        sampling = sampling.override(style)
        values = {
            option: getattr(getattr(sampling, part) if part else sampling, name)
            for option, (part, name) in SAMPLING_OPTIONS.items()
        }
        return cls(style=style, **values, **others)

    def changed(self, sampling: Sampling) -> dict[str, Any]:
        """The style, and the settings that differ from a pipeline's in it, as arguments for `Sampling.override`."""
        defaults = SamplingOptions.of(sampling, self.style)
        names = [name for name in SAMPLING_OPTIONS if getattr(self, name) != getattr(defaults, name)]
        changed = {name: getattr(self, name) for name in names}
        return changed if self.style == "clear" else {"style": self.style} | changed
