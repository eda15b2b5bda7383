"""Inversion and inpainting against distributions whose exact denoiser is known."""

import math

import pytest
import torch
from test_samplers import DEVIATION, MEAN, NORMALS, at_time, gaussian_denoiser

from unclip.diffusion.gaussian import GaussianDiffusion
from unclip.diffusion.samplers import ddim, ddim_invert, ddpm_inpaint, spaced_timesteps


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
def test_ddim_inverted_finds_the_noise(schedule):
    d = GaussianDiffusion(1000, schedule)
    x = ddim_invert(gaussian_denoiser(d), MEAN + DEVIATION * NORMALS, d, spaced_timesteps(1000, 250))
    assert (x - at_time(d, 999)).abs().max() < 0.08


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
@pytest.mark.parametrize("limit", [None, 0.8])
def test_ddim_inverted_leads_back_even_through_a_clipped_denoiser(schedule, limit):
    """More rounds bring the way back as close as one likes; none is the plain inversion."""
    d, x0 = GaussianDiffusion(1000, schedule), (MEAN + DEVIATION * NORMALS).clamp(-0.8, 0.8)
    exact, timesteps, errors = gaussian_denoiser(d), spaced_timesteps(1000, 50), []
    denoise = exact if limit is None else lambda x, t: exact(x, t).clamp(-limit, limit)
    for rounds in (1, 8):
        x = ddim_invert(denoise, x0, d, timesteps, rounds=rounds)
        errors.append((ddim(denoise, x, d, timesteps) - x0).abs().max().item())
    assert errors[1] < 5e-3
    assert errors[1] < 0.2 * errors[0]


def test_grain_is_what_the_denoiser_removes():
    """Where every noised sample is taken for 0.3, any noise will do: that which is given is found again."""
    d, x0, timesteps = GaussianDiffusion(1000, "cosine"), torch.full((2, 5), 0.3), spaced_timesteps(1000, 20)
    grain = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    x = ddim_invert(lambda x, t: torch.full_like(x, 0.3), x0, d, timesteps, grain)
    torch.testing.assert_close(x, d.add_noise(x0, grain, 999), atol=1e-4, rtol=1e-4)


def test_inpainting_keeps_what_is_known_and_draws_the_rest_given_it():
    """Two numbers of correlation 0.9, exact denoiser: the first given as 1.2, the second has mean 1.08, variance 0.19.

    Without repeating the steps the second would hardly learn of the first.
    """
    d, n = GaussianDiffusion(1000, "cosine"), 4000
    covariance = torch.tensor([[1, 0.9], [0.9, 1]], dtype=torch.float64)

    def denoise(x, t):
        abar = d.alphas_cumprod[t].item()
        gain = math.sqrt(abar) * covariance @ torch.linalg.inv(abar * covariance + (1 - abar) * torch.eye(2))
        return x @ gain.T

    generator = torch.Generator().manual_seed(0)
    noise = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    known, mask = torch.tensor([[1.2, 0.0]], dtype=torch.float64).expand(n, -1), torch.tensor([False, True])
    x = ddpm_inpaint(denoise, noise(known), d, spaced_timesteps(1000, 100), noise, known, mask, rounds=8)
    assert (x[:, 0] == 1.2).all()
    assert x[:, 1].mean().item() == pytest.approx(1.08, abs=0.06)
    assert x[:, 1].var().item() == pytest.approx(0.19, abs=0.06)
