"""Inversion and inpainting against distributions whose exact denoiser is known."""

import pytest
import torch
from gaussians import DEVIATION, MEAN, NORMALS, PROCESSES, denoise, levels_at, quantiles

from unclip.diffusion import Denoised, ddim, ddim_invert, ddpm_inpaint, even_levels
from unclip.errors import UserError

DATA = MEAN + DEVIATION * NORMALS


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_ddim_inverted_finds_the_noise_and_leads_back(process):
    errors = []
    for steps in (250, 1000):
        levels = even_levels(process, steps)
        x = ddim_invert(denoise, DATA, levels)
        assert (x - quantiles(levels[0])).abs().max() < 0.02 * 1000 / steps
        errors.append((ddim(denoise, x, levels) - DATA).abs().max().item())
    assert errors[1] < 0.01
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("limit", [None, 0.8])
def test_ddim_inverted_leads_back_even_through_a_clipped_denoiser(name, limit):
    """More rounds bring the way back as close as one likes; none is the plain inversion."""
    x0, levels, errors = DATA.clamp(-0.8, 0.8), even_levels(PROCESSES[name], 50), []

    def clipped(x, level):
        return Denoised(denoise(x, level).x0.clamp(-limit, limit))

    denoiser = denoise if limit is None else clipped
    for rounds in (1, 8):
        x = ddim_invert(denoiser, x0, levels, rounds=rounds)
        errors.append((ddim(denoiser, x, levels) - x0).abs().max().item())
    assert errors[1] < 5e-3
    if name != "straight":  # there sigma doubles in the first step, so that its iteration hardly contracts
        assert errors[1] < 0.2 * errors[0]


def test_grain_is_what_the_denoiser_removes():
    """Where every noised sample is taken for 0.3, any noise will do: that which is given is found again."""
    levels = even_levels(PROCESSES["cosine"], 20)
    grain = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    x = ddim_invert(lambda x, level: Denoised(torch.full_like(x, 0.3)), torch.full((2, 5), 0.3), levels, grain)
    torch.testing.assert_close(x, levels[0].alpha * 0.3 + levels[0].sigma * grain, atol=1e-4, rtol=1e-4)


def test_inversion_needs_two_steps():
    with pytest.raises(UserError, match="inversion needs at least 2 steps, not 1"):
        ddim_invert(denoise, DATA, levels_at(PROCESSES["cosine"], 999))


@pytest.mark.parametrize("name", ["cosine", "straight"])
def test_inpainting_keeps_what_is_known_and_draws_the_rest_given_it(name):
    """Two numbers of correlation 0.9, exact denoiser: the first given as 1.2, the second has mean 1.08, variance 0.19.

    Without repeating the steps the second would hardly learn of the first.
    """
    n = 4000
    covariance = torch.tensor([[1, 0.9], [0.9, 1]], dtype=torch.float64)

    def denoise_pair(x, level):
        total = level.alpha**2 * covariance + level.sigma**2 * torch.eye(2)
        return Denoised(x @ (level.alpha * covariance @ torch.linalg.inv(total)).T)

    generator = torch.Generator().manual_seed(0)
    noise = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    known, mask = torch.tensor([[1.2, 0.0]], dtype=torch.float64).expand(n, -1), torch.tensor([False, True])
    levels = even_levels(PROCESSES[name], 100)
    x = ddpm_inpaint(denoise_pair, noise(known), levels, noise, known, mask, rounds=8)
    assert (x[:, 0] == 1.2).all()
    assert x[:, 1].mean().item() == pytest.approx(1.08, abs=0.06)
    assert x[:, 1].var().item() == pytest.approx(0.19, abs=0.06)
