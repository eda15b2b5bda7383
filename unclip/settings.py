"""How to sample. Kept apart from the models so that `sample.py --help` need not import torch."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from unclip.errors import UserError, shown
from unclip.fields import bounded, check, choice
from unclip.registry import SAMPLERS

Device = Literal["auto", "cpu", "cuda", "mps"]
SamplerName = Literal[*SAMPLERS]
Spacing = Literal["even", "karras"]
MAX_SEED = 2**63 - 1  # what fits an int64 array


def check_seeds(seed: int, n: int) -> None:
    """Raise UserError unless seed .. seed + n - 1 are all usable."""
    if not 0 <= seed <= MAX_SEED - n:
        raise UserError(f"seed must not be negative or reach 2**63, but is {seed}")


def seed_list(seed: int | Sequence[int], n: int) -> list[int]:
    """n seeds: those from `seed` on, or the n that are given, as any kind of integers: Python's, numpy's, torch's.

    Raises UserError for other numbers of them, or for one out of range.
    """
    seed = list(seed) if isinstance(seed, Iterator) else seed
    try:
        seeds = [operator.index(one) for one in ([seed] if is_single(seed) else seed)]
    except (TypeError, ValueError):
        raise UserError(f"seed must be an integer or a list of them, not {shown(seed)}") from None
    if is_single(seed):
        check_seeds(seeds[0], n)
        return list(range(seeds[0], seeds[0] + n))
    if len(seeds) != n:
        raise UserError(f"{len(seeds)} seeds do not go with {n} images")
    for one in seeds:
        check_seeds(one, 1)
    return seeds


def is_single(seed: Any) -> bool:
    """Whether a seed is one number, of any library, and not several."""
    return not hasattr(seed, "__iter__") or isinstance(seed, str) or getattr(seed, "ndim", 1) == 0


@dataclass(frozen=True)
class PriorSettings:
    """How to draw from the prior. Raises UserError for values out of range."""

    steps: int = bounded(20, 1, 10_000, display_name="prior_steps")
    """Prior steps per embedding (dpmpp)."""
    guidance: float = bounded(1.0, 0, 100, display_name="prior_guidance")
    """Prior guidance scale: 1 is none, more follows the caption closer at the price of variety."""
    num_candidates: int = bounded(4, 1, 256, display_name="prior_num_candidates")
    """Image embeddings drawn for each sample, of which one is kept: see `threshold`."""
    threshold: float = bounded(0.85, 0, 1, display_name="prior_threshold")
    """Of a class's caption the first draw is kept to which CLIP gives at least this probability, beside those of the
    other classes; if none has it, or for other captions, the likeliest; without classes the closest to the text."""

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class DecoderSettings:
    """How to draw from the decoder. Raises UserError for values out of range."""

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
    """Images drawn for each embedding, each from noise of its own, of which the one is kept whose own embedding is the
    closest to it: truer to the embedding, at so many times the cost. Without an embedding, or from given noise, one."""

    def __post_init__(self):
        check(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            yield "guidance_interval", "be two ascending numbers in 0 .. 1"
        if self.eta and "eta" not in SAMPLERS[self.sampler].reads:
            readers = ", ".join(name for name, sampler in SAMPLERS.items() if "eta" in sampler.reads)
            yield "eta", f"be 0 for the {self.sampler} sampler (only {readers} reads it)"


@dataclass(frozen=True)
class Sampling:
    """All settings of drawing. A pipeline carries its own in model_index.json; what is given at a call beats them."""

    prior: PriorSettings = field(default_factory=PriorSettings)
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    batch_size: int = bounded(64, 1, 4096)
    """Images drawn at once; less needs less memory. It does not change the images."""

    def __post_init__(self):
        check(self)

    def override(self, style: str = "clear", **settings: Any) -> "Sampling":
        """The same with other values, by the names of `SamplingOptions`; what is named beats the style.

        Raises UserError for an unknown name.
        """
        if style not in list(STYLES):
            raise UserError(f"there is no style {shown(style)}; choose from {', '.join(STYLES)}")
        prior, decoder, own = {}, {}, {}
        for name, value in (STYLES[style] | settings).items():
            if name not in SAMPLING_OPTIONS:
                raise UserError(f"there is no setting {name!r}; choose from {', '.join(SAMPLING_OPTIONS)}")
            part = own if name == "batch_size" else prior if name in PRIOR_OPTIONS else decoder
            part[PRIOR_OPTIONS.get(name, name)] = plain(value)
        if "sampler" in decoder and decoder["sampler"] != self.decoder.sampler:
            decoder = {"eta": 0.0} | decoder  # that of the other sampler says nothing of this one
        return replace(self, prior=replace(self.prior, **prior), decoder=replace(self.decoder, **decoder), **own)


def plain(value: Any) -> Any:
    """numpy's and torch's numbers, and lists of numbers, as Python's numbers and tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


STYLES: dict[str, dict[str, Any]] = {
    "clear": {},
    "faithful": {"guidance": 1.0, "prior_guidance": 1.0, "prior_num_candidates": 1, "num_candidates": 1},
}
"""Named settings over the pipeline's own: clear changes nothing; faithful guides nothing and picks nothing, so that the
samples are as varied as the model has learned the images to be, and a Frechet distance tells what it has learned."""


@dataclass(frozen=True)
class SamplingOptions:
    """All settings side by side, as options of a program, whose defaults are the pipeline's own."""

    style: str = choice("clear", STYLES)
    """clear is the pipeline's own settings, faithful no guidance, no choice: less typical, as varied as the data."""
    steps: int = bounded(DecoderSettings.steps, 1, 10_000)
    """Decoder steps per image, from 1 to the decoder's timesteps."""
    guidance: float = bounded(DecoderSettings.guidance, 0, 100)
    """Decoder guidance scale: 1 is none, more follows the caption closer at the price of variety."""
    guidance_interval: tuple[float, float] = bounded(DecoderSettings.guidance_interval, 0, 1)
    """Guide the decoder only at these times, from 0, the clean image, to 1, pure noise."""
    sampler: SamplerName = choice(DecoderSettings.sampler, SAMPLERS)
    """Decoder sampler."""
    eta: float = bounded(DecoderSettings.eta, 0, 1)
    """Noise of the ddim sampler: 0 is deterministic, 1 as noisy as ddpm."""
    spacing: Spacing = DecoderSettings.spacing
    """Spacing of the decoder's steps: even in time, or karras, dense where there is little noise."""
    num_candidates: int = bounded(DecoderSettings.num_candidates, 1, 256)
    """Images drawn for each embedding, each from noise of its own, of which the one is kept whose own embedding is the
    closest to it: truer to the embedding, at so many times the cost. Without an embedding, or from given noise, one."""
    prior_steps: int = bounded(PriorSettings.steps, 1, 10_000)
    """Prior steps per embedding (dpmpp)."""
    prior_guidance: float = bounded(PriorSettings.guidance, 0, 100)
    """Prior guidance scale: 1 is none, more follows the caption closer at the price of variety."""
    prior_num_candidates: int = bounded(PriorSettings.num_candidates, 1, 256)
    """Image embeddings drawn for each sample, of which one is kept: see `threshold`."""
    prior_threshold: float = bounded(PriorSettings.threshold, 0, 1)
    """Of a class's caption the first draw is kept to which CLIP gives at least this probability, beside those of the
    other classes; if none has it, or for other captions, the likeliest; without classes the closest to the text."""
    batch_size: int = bounded(64, 1, 4096)
    """Images drawn at once; less needs less memory. It does not change the images."""

    @classmethod
    def of(cls, sampling: Sampling, style: str = "clear", **others: Any) -> Self:
        """A pipeline's settings, in a style, as defaults; `others` are the fields of a subclass."""
        sampling = sampling.override(style)
        prior = {option: getattr(sampling.prior, name) for option, name in PRIOR_OPTIONS.items()}
        return cls(style=style, **asdict(sampling.decoder), **prior, batch_size=sampling.batch_size, **others)

    def changed(self, sampling: Sampling) -> dict[str, Any]:
        """The style, and what differs from a pipeline's in it, for `Sampling.override` and calls of the pipeline."""
        own = SamplingOptions.of(sampling, self.style)
        changed = {name: value for name in SAMPLING_OPTIONS if (value := getattr(self, name)) != getattr(own, name)}
        return changed if self.style == "clear" else {"style": self.style} | changed


SAMPLING_OPTIONS = tuple(option.name for option in fields(SamplingOptions) if option.name != "style")
PRIOR_OPTIONS = {
    "prior_steps": "steps",
    "prior_guidance": "guidance",
    "prior_num_candidates": "num_candidates",
    "prior_threshold": "threshold",
}
"""Which options are the prior's, and what it calls them; the others are the decoder's, by its own names."""
