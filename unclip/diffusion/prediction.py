"""Predictions that a network may make, and their conversions into one another.

All functions take alpha and sigma as numbers, or as tensors that broadcast with x. Predictions are named "x0", "eps",
"v" (Salimans & Ho 2022, section 4) and, on the straight path, "velocity" (Liu et al. 2022, arXiv 2209.03003).
"""

from typing import TypeAlias

import torch
from torch import Tensor

from unclip.diffusion.process import Level, NoiseLevels, Prediction, Process
from unclip.diffusion.samplers import Denoise, Denoised

Coefficient: TypeAlias = Tensor | float


def add_noise(x0: Tensor, noise: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """x_t = alpha x_0 + sigma noise (Ho et al. 2020, eq. 4)."""
    return alpha * x0 + sigma * noise


def training_target(
    prediction: Prediction, x0: Tensor, noise: Tensor, alpha: Coefficient, sigma: Coefficient
) -> Tensor:
    """The tensor that the network has to put out for add_noise(x0, noise, alpha, sigma)."""
    if prediction == "x0":
        return x0
    if prediction == "eps":
        return noise
    if prediction == "v":
        return alpha * noise - sigma * x0
    return noise - x0  # velocity: d x_t / d t


def x0_from_output(prediction: Prediction, output: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """The clean sample that a network's output at x stands for."""
    if prediction == "x0":
        return output
    if prediction == "eps":
        return (x - sigma * output) / alpha
    if prediction == "v":
        return alpha * x - sigma * output
    return x - sigma * output  # velocity, as alpha = 1 - sigma


def noise_from_x0(x: Tensor, x0: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """The noise that x holds beside the clean sample x0."""
    return (x - alpha * x0) / sigma


def noised_pair(prediction: Prediction, x0: Tensor, noise: Tensor, levels: NoiseLevels) -> tuple[Tensor, Tensor]:
    """A training batch's input x_t and target, for clean samples and noise (B, ...)."""
    shape = (-1, *[1] * (x0.ndim - 1))
    alpha = levels.alpha.view(shape)
    sigma = levels.sigma.view(shape)
    return add_noise(x0, noise, alpha, sigma), training_target(prediction, x0, noise, alpha, sigma)


def min_snr_weight(prediction: Prediction, alpha: Tensor, sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """Min-SNR weights (B,) for the squared error of a prediction (Hang et al. 2023, section 3.4).

    The error of x0 has the weight min(SNR, gamma). The squared error of eps is SNR times that of x0; that of v is
    SNR + 1 times, and that of the velocity 1 / sigma^2 times.
    """
    snr = (alpha / sigma).square()
    weight = snr.clamp(max=gamma)
    if prediction == "eps":
        return weight / snr
    if prediction == "v":
        return weight / (snr + 1)
    return weight * sigma.square() if prediction == "velocity" else weight


def at_level(network, process: Process):
    """Wrap network(x, time (B,)) as model(x, level)."""

    def model(x: Tensor, level: Level) -> Tensor:
        time = torch.full((len(x),), process.network_time(level.t), dtype=torch.float32, device=x.device)
        return network(x, time)

    return model


def make_denoiser(model, prediction: Prediction, clip_x0: float | None = None) -> Denoise:
    """Wrap model(x, level) -> prediction as denoise(x, level) -> `Denoised`.

    Args:
        clip_x0: limits the clean sample to +-clip_x0.
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        x0 = x0_from_output(prediction, model(x, level), x, level.alpha, level.sigma)
        return Denoised(x0 if clip_x0 is None else x0.clamp(-clip_x0, clip_x0))

    return denoise
