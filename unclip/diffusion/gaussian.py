"""Gaussian diffusion: noise schedules, conversions between predictions, the posterior, loss weights.

Knows no model and works on any trailing shape: the prior uses it on (B, D), the decoder on (B, C, H, W).
Timesteps are integers 0 .. T-1; `alphas_cumprod[t]` is the product of the first t+1 alphas, so t = 0 is already
slightly noisy, and the clean sample is addressed as t = -1, where the product is 1.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from unclip.errors import UserError

Schedule = Literal["cosine", "linear", "sigmoid"]
Prediction = Literal["x0", "eps", "v"]


def cosine_alphas_cumprod(u: Tensor, s: float = 0.008) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17, at times u in [0, 1]."""
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return f / f[0]


def sigmoid_alphas_cumprod(u: Tensor, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """Jabri et al. 2022, algorithm 2, at times u in [0, 1], before the clipping of beta."""
    v_start, v_end = torch.tensor([start / tau, end / tau], dtype=u.dtype, device=u.device).sigmoid()
    return (v_end - ((u * (end - start) + start) / tau).sigmoid()) / (v_end - v_start)


def make_betas(schedule: Schedule, timesteps: int) -> Tensor:
    """The forward variances (T,) in float64, each in (0, 0.999]. Raises UserError for an unknown schedule.

    They lie on the CPU, also while a model is built on the meta device, where they would import torch's compiler.
    """
    if schedule == "linear":  # Ho et al. 2020, section 4; rescaled so that other T end at the same noise
        scale = 1000 / timesteps
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64, device="cpu")
    elif schedule in ("cosine", "sigmoid"):
        u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64, device="cpu")
        alphas_cumprod = cosine_alphas_cumprod(u) if schedule == "cosine" else sigmoid_alphas_cumprod(u)
        betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    else:
        raise UserError(f"unknown schedule {schedule!r}; choose one of {', '.join(get_args(Schedule))}")
    return betas.clamp(max=0.999)


class GaussianDiffusion:
    """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) and what follows from it.

    Args:
        timesteps: T, at least 2.
        schedule: "cosine", "linear" or "sigmoid".
        prediction: what a model trained with this process puts out: "x0", "eps", or "v" (Salimans & Ho 2022).

    Every method takes `t` as an int or a (B,) integer tensor and broadcasts it over the trailing shape. The tables
    are kept in float64 on the CPU; results have the dtype and device of the tensors that come in.
    """

    def __init__(self, timesteps: int = 1000, schedule: Schedule = "cosine", prediction: Prediction = "eps"):
        if timesteps < 2:
            raise UserError(f"diffusion needs at least 2 timesteps, not {timesteps}")
        if prediction not in get_args(Prediction):
            raise UserError(f"unknown prediction {prediction!r}; choose one of {', '.join(get_args(Prediction))}")
        self.timesteps = timesteps
        self.schedule = schedule
        self.prediction = prediction
        self.betas = make_betas(schedule, timesteps)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        self._tables: dict[torch.device, Tensor] = {}

    def abar(self, t: int | Tensor) -> Tensor:
        """abar_t in float64, with abar_{-1} = 1, on the device of t, which is never waited for."""
        t = torch.as_tensor(t)
        if t.device not in self._tables:  # Apple's GPUs have no float64
            dtype = torch.float32 if t.device.type == "mps" else torch.float64
            self._tables[t.device] = self.alphas_cumprod.to(dtype).to(t.device)
        table = self._tables[t.device]
        return torch.where(t < 0, 1.0, table[t.long().clamp(min=0)])

    def signal_and_noise(self, t: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to multiply x."""
        abar = self.abar(t)
        return _like(abar.sqrt(), x), _like((1 - abar).sqrt(), x)

    def add_noise(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """A draw of q(x_t | x_0) for the given standard-normal noise (Ho et al. 2020, eq. 4)."""
        a, b = self.signal_and_noise(t, x0)
        return a * x0 + b * noise

    def x0_from_eps(self, xt: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        a, b = self.signal_and_noise(t, xt)
        return (xt - b * eps) / a

    def eps_from_x0(self, xt: Tensor, x0: Tensor, t: int | Tensor) -> Tensor:
        a, b = self.signal_and_noise(t, xt)
        return (xt - a * x0) / b

    def x0_from_v(self, xt: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
        a, b = self.signal_and_noise(t, xt)
        return a * xt - b * v

    def eps_from_v(self, xt: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
        a, b = self.signal_and_noise(t, xt)
        return b * xt + a * v

    def v_from_x0(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans & Ho 2022, section 4)."""
        a, b = self.signal_and_noise(t, x0)
        return a * noise - b * x0

    def target(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """What the model has to put out for x_t = add_noise(x0, noise, t)."""
        if self.prediction == "x0":
            return x0
        return noise if self.prediction == "eps" else self.v_from_x0(x0, noise, t)

    def to_x0(self, output: Tensor, xt: Tensor, t: int | Tensor) -> Tensor:
        """The clean sample that a model's output at x_t stands for."""
        if self.prediction == "x0":
            return output
        return self.x0_from_eps(xt, output, t) if self.prediction == "eps" else self.x0_from_v(xt, output, t)

    def posterior(
        self, x0: Tensor, xt: Tensor, t: int | Tensor, t_prev: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t_prev} | x_t, x_0) (Ho et al. 2020, eq. 6-7); t_prev = t - 1 unless given.

        The variance (its square root is the standard deviation to multiply noise by) is shaped to broadcast with x.
        """
        abar = self.abar(t)
        abar_prev = self.abar(torch.as_tensor(t) - 1 if t_prev is None else t_prev)
        alpha = abar / abar_prev  # one step's alpha, or the product over the steps that are skipped
        mean_x0 = _like(abar_prev.sqrt() * (1 - alpha) / (1 - abar), xt)
        mean_xt = _like(alpha.sqrt() * (1 - abar_prev) / (1 - abar), xt)
        return mean_x0 * x0 + mean_xt * xt, _like((1 - alpha) * (1 - abar_prev) / (1 - abar), xt)

    def loss_weight(self, t: Tensor, gamma: float = 5.0) -> Tensor:
        """Min-SNR weights (B,) for the squared error on `target` (Hang et al. 2023, section 3.4).

        The weight on the error of x0 is min(SNR, gamma); the error of eps is SNR times, and that of v is
        SNR + 1 times, the error of x0.
        """
        abar = self.abar(t)
        snr = abar / (1 - abar)
        weight = snr.clamp(max=gamma)
        if self.prediction == "eps":
            weight = weight / snr
        elif self.prediction == "v":
            weight = weight / (snr + 1)
        return weight.float()

    def draw_times(
        self, batch: int, generator: torch.Generator, log_sigma: tuple[float, float] | None = None
    ) -> Tensor:
        """Stratified times (B,) to train at: one draw in each of B equally likely slices, which lowers the variance of
        the loss.

        Uniform over 0 .. T-1; or, given the mean and the deviation of ln sigma, where sigma = sqrt(1 / abar - 1) is the
        noise over the signal, log-normal (Karras et al. 2022, arXiv 2206.00364, section 5).
        """
        u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        if log_sigma is None:
            return (u * self.timesteps).long().clamp(max=self.timesteps - 1)
        mean, deviation = log_sigma
        return self.nearest_times(torch.exp(mean + deviation * torch.special.ndtri(u.double())))

    def nearest_times(self, sigma: Tensor) -> Tensor:
        """The times whose noise over signal, on a logarithmic scale, is nearest to sigma."""
        levels = 0.5 * (1 / self.alphas_cumprod - 1).log()  # ln sigma_t, ascending
        return torch.bucketize(sigma.double().log(), (levels[1:] + levels[:-1]) / 2)

    def training_pair(self, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What a model is given, x_t, and what it has to put out for it."""
        return self.add_noise(x0, noise, t), self.target(x0, noise, t)

    def denoiser(self, model, clip_x0: float | None = None):
        """Wrap model(x, t (B,)) -> prediction as denoise(x, t: int) -> x0, limited to +-clip_x0 where given."""

        def denoise(x: Tensor, t: int) -> Tensor:
            output = model(x, torch.full((len(x),), t, device=x.device))
            x0 = self.to_x0(output, x, t)
            return x0 if clip_x0 is None else x0.clamp(-clip_x0, clip_x0)

        return denoise


def _like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A () or (B,) coefficient, with x's dtype and device, shaped to broadcast over x's trailing dimensions."""
    coefficient = coefficient.to(x.dtype).to(x.device)
    return coefficient if coefficient.ndim == 0 else coefficient.view(-1, *[1] * (x.ndim - 1))
