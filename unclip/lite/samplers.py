"""The samplers of `unclip.diffusion.samplers`, for NumPy's arrays; see there for their sources."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from unclip.lite.levels import Level

Denoise = Callable[[np.ndarray, Level], np.ndarray]
"""denoise(x, level) -> the predicted clean sample."""
Noise = Callable[[tuple[int, ...]], np.ndarray]


def ddpm(denoise: Denoise, x: np.ndarray, levels: Sequence[Level], noise: Noise) -> np.ndarray:
    for level, lower in pairwise(levels):
        x0 = denoise(x, level)
        alpha = level.alpha / lower.alpha
        variance = level.sigma**2 - alpha**2 * lower.sigma**2
        x = lower.alpha * variance / level.sigma**2 * x0 + alpha * lower.sigma**2 / level.sigma**2 * x
        if lower.sigma > 0:
            x = x + math.sqrt(variance * lower.sigma**2 / level.sigma**2) * noise(x.shape[1:])
        x = x.astype(np.float32)
    return x


def ddim(denoise: Denoise, x: np.ndarray, levels: Sequence[Level], noise: Noise, eta: float = 0.0) -> np.ndarray:
    for level, lower in pairwise(levels):
        x0 = denoise(x, level)
        eps = (x - level.alpha * x0) / level.sigma
        step_variance = level.sigma**2 - (level.alpha / lower.alpha) ** 2 * lower.sigma**2
        variance = eta**2 * lower.sigma**2 / level.sigma**2 * step_variance
        x = lower.alpha * x0 + math.sqrt(max(lower.sigma**2 - variance, 0.0)) * eps
        if variance > 0:
            x = x + math.sqrt(variance) * noise(x.shape[1:])
        x = x.astype(np.float32)
    return x


def dpmpp(denoise: Denoise, x: np.ndarray, levels: Sequence[Level], noise: Noise | None = None) -> np.ndarray:
    previous = None
    h_last = 0.0
    for level, lower in pairwise(levels):
        x0 = denoise(x, level)
        if lower.sigma == 0:
            return x0
        h = math.log(lower.alpha / lower.sigma) - log_snr(level)
        target = x0 if previous is None else x0 + h / (2 * h_last) * (x0 - previous)
        x = (lower.sigma / level.sigma * x - lower.alpha * math.expm1(-h) * target).astype(np.float32)
        previous = x0
        h_last = h
    return x


def consistency(denoise: Denoise, x: np.ndarray, levels: Sequence[Level], noise: Noise) -> np.ndarray:
    for level, lower in pairwise(levels):
        x = denoise(x, level)
        if lower.sigma > 0:
            x = (lower.alpha * x + lower.sigma * noise(x.shape[1:])).astype(np.float32)
    return x


def log_snr(level: Level) -> float:
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf


def x0_from_output(prediction: str, output: np.ndarray, x: np.ndarray, level: Level) -> np.ndarray:
    """The clean sample that a network's output at x stands for."""
    if prediction == "x0":
        return output
    if prediction == "eps":
        return (x - np.float32(level.sigma) * output) / np.float32(level.alpha)
    if prediction == "v":
        return np.float32(level.alpha) * x - np.float32(level.sigma) * output
    return x - np.float32(level.sigma) * output  # velocity


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp, "consistency": consistency}
