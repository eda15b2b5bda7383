"""Noise schedules of the variance-preserving process, as tables of T steps."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from unclip.errors import UserError

Schedule = Literal["cosine", "linear", "sigmoid"]


def cosine_alphas_cumprod(u: Tensor, s: float = 0.008) -> Tensor:
    """Signal share abar at times u in [0, 1] (Nichol & Dhariwal 2021, eq. 17)."""
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return f / f[0]


def sigmoid_alphas_cumprod(u: Tensor, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """Signal share abar at times u in [0, 1], before beta is clipped (Jabri et al. 2022, algorithm 2)."""
    v_start, v_end = torch.tensor([start / tau, end / tau], dtype=u.dtype, device=u.device).sigmoid()
    return (v_end - ((u * (end - start) + start) / tau).sigmoid()) / (v_end - v_start)


def make_betas(schedule: Schedule, timesteps: int) -> Tensor:
    """Forward variances (T,) in float64, each in (0, 0.999]. Raises UserError for an unknown schedule.

    The tensor lies on the CPU even while a model is built on the meta device.
    """
    if schedule == "linear":  # Ho et al. 2020, section 4; rescaled so that every T ends at the same noise
        scale = 1000 / timesteps
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64, device="cpu")
    elif schedule in ("cosine", "sigmoid"):
        u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64, device="cpu")
        alphas_cumprod = cosine_alphas_cumprod(u) if schedule == "cosine" else sigmoid_alphas_cumprod(u)
        betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    else:
        raise UserError(f"unknown schedule {schedule!r}; choose one of {', '.join(get_args(Schedule))}")
    return betas.clamp(max=0.999)
