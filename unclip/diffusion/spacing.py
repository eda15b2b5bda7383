"""The noise levels that a sampler visits: from the noisiest down, the last one clean."""

import torch

from unclip.diffusion.process import CLEAN, Level, Process

SIGMA_RANGE = (80.0, 0.02)
"""Noise over signal at the ends of the Karras spacing: within a grey level of pure noise and of the clean image."""


def even_levels(process: Process, steps: int) -> list[Level]:
    """`steps` levels whose times are evenly spaced, and the clean level."""
    process.check_steps(steps)
    return [*map(process.level, process.even_times(steps)), CLEAN]


def karras_levels(process: Process, steps: int, rho: float = 7.0) -> list[Level]:
    """`steps` levels, dense where there is little noise, and the clean level.

    With s = sigma / alpha, s^(1/rho) is evenly spaced (Karras et al. 2022, eq. 5).
    """
    process.check_steps(steps)
    highest, lowest = torch.tensor(SIGMA_RANGE, dtype=torch.float64, device="cpu") ** (1 / rho)
    positions = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    ratios = torch.lerp(highest, lowest, positions) ** rho
    return [*map(process.level, process.distinct_times_at(ratios)), CLEAN]


SPACINGS = {"even": even_levels, "karras": karras_levels}
