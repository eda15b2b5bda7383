"""How to sample. Kept apart from the models so that `sample.py --help` need not import torch."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

import tyro

from unclip.errors import UserError

Sampler = Literal["ddpm", "ddim", "dpmpp"]
Device = Literal["auto", "cpu", "cuda", "mps"]
MAX_SEED = 2**63 - 1  # what fits an int64 array

FromData = tyro.conf.Suppress[int]
"""A field of a model's config that the trainer takes from the data or the frozen CLIP: no option."""


def check_seeds(seed: int, n: int) -> None:
    """Raise UserError unless seed .. seed + n - 1 are all usable."""
    if not 0 <= seed <= MAX_SEED - n:
        raise UserError(f"seed must not be negative or reach 2**63, but is {seed}")


@dataclass(frozen=True)
class Sampling:
    """Settings of both diffusion samplers. Raises UserError for values out of range."""

    steps: int = 10
    """Decoder steps an image, from 1 to the decoder's timesteps."""
    guidance: float = 2.5
    """Decoder guidance scale: 1 is none, more follows the caption closer at the price of variety."""
    guidance_interval: tuple[float, float] = (0.3, 0.8)
    """Guide the decoder only at these times, from 0, the clean image, to 1, pure noise."""
    sampler: Sampler = "dpmpp"
    """Decoder sampler."""
    eta: float = 0.0
    """Noise of the ddim sampler: 0 is deterministic, 1 as noisy as ddpm."""
    prior_steps: int = 20
    """Prior steps an embedding (dpmpp)."""
    prior_guidance: float = 1.5
    """Prior guidance scale."""
    draws: int = 2
    """Image embeddings drawn for each sample; the one closest to the text embedding is kept."""
    batch_size: int = 64
    """Images drawn at once; less needs less memory. It does not change the images."""

    def __post_init__(self):
        for name in ("steps", "prior_steps", "draws", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("guidance", "prior_guidance"):
            if not 0 <= getattr(self, name) <= 100:
                raise UserError(f"{name} must lie between 0 and 100, not {getattr(self, name)}")
        if not 0 <= self.guidance_interval[0] <= self.guidance_interval[1] <= 1:
            raise UserError(f"guidance_interval must be two ascending numbers in 0 .. 1, not {self.guidance_interval}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must lie between 0 and 1, not {self.eta}")
        if self.eta and self.sampler != "ddim":
            raise UserError(f"eta is for the ddim sampler, not for {self.sampler}; choose that or leave it out")
        if self.sampler not in get_args(Sampler):
            raise UserError(f"unknown sampler {self.sampler!r}; choose one of {', '.join(get_args(Sampler))}")

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]
