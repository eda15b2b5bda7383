"""Gaussian diffusion by integer steps: the variance-preserving process as papers write it.

The models of this project use `unclip.diffusion.process` with float times; this is the same process in the notation of
Ho et al. 2020. Steps are integers 0 .. T-1. `alphas_cumprod[t]` is the product of the first t+1 alphas, so t = 0 is
already slightly noisy, and the clean sample is addressed as t = -1, where the product is 1.
"""

from typing import get_args

import torch
from torch import Tensor

from unclip.diffusion.prediction import min_snr_weight, noise_from_x0, training_target, x0_from_output
from unclip.diffusion.process import Prediction
from unclip.diffusion.schedules import Schedule, make_betas
from unclip.errors import UserError


class GaussianDiffusion:
    """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) and what follows from it, on any trailing shape.

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
        predictions = [name for name in get_args(Prediction) if name != "velocity"]
        if prediction not in predictions:
            raise UserError(f"unknown prediction {prediction!r}; choose one of {', '.join(predictions)}")
        self.timesteps = timesteps
        self.schedule = schedule
        self.prediction = prediction
        self.betas = make_betas(schedule, timesteps)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)

    def abar(self, t: int | Tensor) -> Tensor:
        """abar_t in float64 on the CPU, with abar_{-1} = 1."""
        t = torch.as_tensor(t, device="cpu")
        return torch.where(t < 0, 1.0, self.alphas_cumprod[t.long().clamp(min=0)])

    def signal_and_noise(self, t: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to multiply x."""
        abar = self.abar(t)
        return _broadcast(abar.sqrt(), x), _broadcast((1 - abar).sqrt(), x)

    def add_noise(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """A draw of q(x_t | x_0) for the given standard-normal noise (Ho et al. 2020, eq. 4)."""
        alpha, sigma = self.signal_and_noise(t, x0)
        return alpha * x0 + sigma * noise

    def x0_from_eps(self, xt: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        return x0_from_output("eps", eps, xt, *self.signal_and_noise(t, xt))

    def eps_from_x0(self, xt: Tensor, x0: Tensor, t: int | Tensor) -> Tensor:
        return noise_from_x0(xt, x0, *self.signal_and_noise(t, xt))

    def x0_from_v(self, xt: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
        return x0_from_output("v", v, xt, *self.signal_and_noise(t, xt))

    def eps_from_v(self, xt: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
        alpha, sigma = self.signal_and_noise(t, xt)
        return sigma * xt + alpha * v

    def v_from_x0(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans & Ho 2022, section 4)."""
        return training_target("v", x0, noise, *self.signal_and_noise(t, x0))

    def target(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """The tensor that the model has to put out for x_t = add_noise(x0, noise, t)."""
        return training_target(self.prediction, x0, noise, *self.signal_and_noise(t, x0))

    def to_x0(self, output: Tensor, xt: Tensor, t: int | Tensor) -> Tensor:
        """The clean sample that a model's output at x_t stands for."""
        return x0_from_output(self.prediction, output, xt, *self.signal_and_noise(t, xt))

    def posterior(
        self, x0: Tensor, xt: Tensor, t: int | Tensor, t_prev: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t_prev} | x_t, x_0) (Ho et al. 2020, eq. 6-7); t_prev = t - 1 unless given.

        The variance (its square root is the standard deviation to multiply noise by) is shaped to broadcast with x.
        """
        abar = self.abar(t)
        abar_prev = self.abar(t - 1 if t_prev is None else t_prev)
        alpha = abar / abar_prev  # one step's alpha, or the product over the steps that are skipped
        mean_x0 = _broadcast(abar_prev.sqrt() * (1 - alpha) / (1 - abar), xt)
        mean_xt = _broadcast(alpha.sqrt() * (1 - abar_prev) / (1 - abar), xt)
        return mean_x0 * x0 + mean_xt * xt, _broadcast((1 - alpha) * (1 - abar_prev) / (1 - abar), xt)

    def loss_weight(self, t: Tensor, gamma: float = 5.0) -> Tensor:
        """Min-SNR weights (B,) for the squared error on `target` (Hang et al. 2023, section 3.4)."""
        abar = self.abar(t)
        return min_snr_weight(self.prediction, abar.sqrt(), (1 - abar).sqrt(), gamma).float().to(t.device)


def _broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    """A () or (B,) coefficient, with x's dtype and device, shaped to broadcast over x's trailing dimensions."""
    coefficient = coefficient.to(x.dtype).to(x.device)
    return coefficient if coefficient.ndim == 0 else coefficient.view(-1, *[1] * (x.ndim - 1))
