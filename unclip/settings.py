"""How to sample. Kept apart from the models so that `sample.py --help` need not import torch."""

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from unclip.errors import UserError, reason
from unclip.fields import from_dict
from unclip.files import read_json
from unclip.registry import SAMPLERS

Device = Literal["auto", "cpu", "cuda", "mps"]
SamplerName = Literal[*SAMPLERS]
MAX_SEED = 2**63 - 1  # what fits an int64 array


def check_seeds(seed: int, n: int) -> None:
    """Raise UserError unless seed .. seed + n - 1 are all usable."""
    if not 0 <= seed <= MAX_SEED - n:
        raise UserError(f"seed must not be negative or reach 2**63, but is {seed}")


def seed_list(seed: int | Sequence[int], n: int) -> list[int]:
    """n seeds: those from `seed` on, or the n that are given, as any kind of integers: Python's, numpy's, torch's.

    Raises UserError for other numbers of them, or for one out of range.
    """
    try:
        seeds = [operator.index(one) for one in ([seed] if is_single(seed) else seed)]
    except (TypeError, ValueError):
        shown = " ".join(repr(seed).split())  # arrays show themselves in several lines
        raise UserError(f"seed must be an integer or a list of them, not {shown}") from None
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
    return not hasattr(seed, "__len__") or getattr(seed, "ndim", 1) == 0


def _check(settings: Any, rules: dict[str, tuple[bool, str]]) -> None:
    for name, (kept, rule) in rules.items():
        if not kept:
            raise UserError(f"{name} must {rule}, not {getattr(settings, name.removeprefix('prior_'))}")


@dataclass(frozen=True)
class PriorSettings:
    """How to draw from the prior. Raises UserError for values out of range."""

    steps: int = 20
    """Prior steps per embedding (dpmpp)."""
    guidance: float = 1.5
    """Prior guidance scale."""
    draws: int = 2
    """Image embeddings drawn for each sample; the one closest to the text embedding is kept."""

    def __post_init__(self):
        rules = {
            "prior_steps": (self.steps >= 1, "be at least 1"),
            "draws": (self.draws >= 1, "be at least 1"),
            "prior_guidance": (0 <= self.guidance <= 100, "lie between 0 and 100"),
        }
        _check(self, rules)


@dataclass(frozen=True)
class DecoderSettings:
    """How to draw from the decoder. Raises UserError for values out of range."""

    steps: int = 10
    """Decoder steps per image, from 1 to the decoder's timesteps."""
    guidance: float = 2.5
    """Decoder guidance scale: 1 is none, more follows the caption closer at the price of variety."""
    guidance_interval: tuple[float, float] = (0.3, 0.8)
    """Guide the decoder only at these times, from 0, the clean image, to 1, pure noise."""
    sampler: SamplerName = "dpmpp"
    """Decoder sampler."""
    eta: float = 0.0
    """Noise of the ddim sampler: 0 is deterministic, 1 as noisy as ddpm."""

    def __post_init__(self):
        low, high = self.guidance_interval
        rules = {
            "steps": (self.steps >= 1, "be at least 1"),
            "guidance": (0 <= self.guidance <= 100, "lie between 0 and 100"),
            "guidance_interval": (0 <= low <= high <= 1, "be two ascending numbers in 0 .. 1"),
            "eta": (0 <= self.eta <= 1, "lie between 0 and 1"),
            "sampler": (self.sampler in SAMPLERS, f"be one of {', '.join(SAMPLERS)}"),
        }
        _check(self, rules)
        if self.eta and "eta" not in SAMPLERS[self.sampler].reads:
            readers = ", ".join(name for name, sampler in SAMPLERS.items() if "eta" in sampler.reads)
            raise UserError(f"eta is not for the {self.sampler} sampler; leave it out, or choose {readers}")


@dataclass(frozen=True)
class Sampling:
    """All settings of drawing. A pipeline carries its own in model_index.json; what is given at a call beats them."""

    prior: PriorSettings = field(default_factory=PriorSettings)
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    batch_size: int = 64
    """Images drawn at once; less needs less memory. It does not change the images."""

    def __post_init__(self):
        _check(self, {"batch_size": (self.batch_size >= 1, "be at least 1")})

    def override(self, **settings: Any) -> "Sampling":
        """The same with other values, by the names of `SamplingOptions`. Raises UserError for an unknown name."""
        prior, decoder, own = {}, {}, {}
        for name, value in settings.items():
            if name not in SAMPLING_OPTIONS:
                raise UserError(f"there is no setting {name!r}; choose from {', '.join(SAMPLING_OPTIONS)}")
            part = own if name == "batch_size" else prior if name in PRIOR_OPTIONS else decoder
            part[PRIOR_OPTIONS.get(name, name)] = value
        if "sampler" in decoder and decoder["sampler"] != self.decoder.sampler:
            decoder = {"eta": 0.0} | decoder  # that of the other sampler says nothing of this one
        return replace(self, prior=replace(self.prior, **prior), decoder=replace(self.decoder, **decoder), **own)


@dataclass(frozen=True)
class SamplingOptions:
    """All settings side by side, as options of a program, whose defaults are the pipeline's own."""

    steps: int = DecoderSettings.steps
    """Decoder steps per image, from 1 to the decoder's timesteps."""
    guidance: float = DecoderSettings.guidance
    """Decoder guidance scale: 1 is none, more follows the caption closer at the price of variety."""
    guidance_interval: tuple[float, float] = DecoderSettings.guidance_interval
    """Guide the decoder only at these times, from 0, the clean image, to 1, pure noise."""
    sampler: SamplerName = DecoderSettings.sampler
    """Decoder sampler."""
    eta: float = DecoderSettings.eta
    """Noise of the ddim sampler: 0 is deterministic, 1 as noisy as ddpm."""
    prior_steps: int = PriorSettings.steps
    """Prior steps per embedding (dpmpp)."""
    prior_guidance: float = PriorSettings.guidance
    """Prior guidance scale."""
    draws: int = PriorSettings.draws
    """Image embeddings drawn for each sample; the one closest to the text embedding is kept."""
    batch_size: int = 64
    """Images drawn at once; less needs less memory. It does not change the images."""

    @classmethod
    def of(cls, sampling: Sampling, **others: Any) -> Self:
        """A pipeline's settings as defaults; `others` are the fields of a subclass."""
        prior = {option: getattr(sampling.prior, name) for option, name in PRIOR_OPTIONS.items()}
        return cls(**asdict(sampling.decoder), **prior, batch_size=sampling.batch_size, **others)

    def changed(self, sampling: Sampling) -> dict[str, Any]:
        """Those that differ from a pipeline's, for `Sampling.override` and calls of the pipeline."""
        own = SamplingOptions.of(sampling)
        return {name: value for name in SAMPLING_OPTIONS if (value := getattr(self, name)) != getattr(own, name)}


SAMPLING_OPTIONS = tuple(option.name for option in fields(SamplingOptions))
PRIOR_OPTIONS = {"prior_steps": "steps", "prior_guidance": "guidance", "draws": "draws"}
"""Which options are the prior's, and what it calls them; the others are the decoder's, by its own names."""


def read_sampling(pipeline: Path) -> Sampling:
    """The pipeline's own settings of sampling; what model_index.json does not name is the library's.

    Raises UserError for settings that are unknown or out of range.
    """
    path = pipeline / "model_index.json"
    index = read_json(path) if path.is_file() else {}
    own = index.get("sampling", {}) if isinstance(index, dict) else None
    if not isinstance(own, dict) or not all(isinstance(part, dict) for part in own.values()):
        raise UserError(f'{path} holds no settings of sampling under "sampling"; restore it, or delete the entry')
    try:
        return from_dict(Sampling, own, str(path))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds settings of sampling that cannot be used ({reason(error)})") from error
