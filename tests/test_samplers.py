"""Samplers against published values, and against a distribution whose exact denoiser is known."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unclip.diffusion.gaussian import GaussianDiffusion
from unclip.diffusion.samplers import (
    RowNoise,
    ddim,
    ddim_invert,
    ddpm,
    dpmpp,
    guided,
    karras_timesteps,
    on_interval,
    spaced_timesteps,
    watch,
)
from unclip.errors import UserError
from unclip.registry import SAMPLERS, SamplerRow, choose_sampler, find
from unclip.settings import DecoderSettings

QUICK = settings(deadline=None, max_examples=100, derandomize=True)
MEAN, DEVIATION = 0.4, 0.5
EVERY = [find(row.function) for row in SAMPLERS.values()]
NORMALS = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]


def gaussian_denoiser(d: GaussianDiffusion):
    """E[x0 | x_t] for x0 ~ N(MEAN, DEVIATION^2): the best denoiser there is."""

    def denoise(x, t):
        abar = d.alphas_cumprod[t].item()
        gain = math.sqrt(abar) * DEVIATION**2 / (abar * DEVIATION**2 + 1 - abar)
        return MEAN + gain * (x - math.sqrt(abar) * MEAN)

    return denoise


def at_time(d: GaussianDiffusion, t: int) -> torch.Tensor:
    """Where the probability-flow ODE of the Gaussian carries NORMALS: to the same quantiles of q(x_t)."""
    abar = d.alphas_cumprod[t].item()
    return math.sqrt(abar) * MEAN + math.sqrt(abar * DEVIATION**2 + 1 - abar) * NORMALS


# Published values: diffusers' scheduler tests.


def golden_sample() -> torch.Tensor:
    return (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


def golden_model(x, t):
    return x * (t / (t + 1)).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("prediction", "total"), [("eps", 258.96), ("v", 202.03)])
def test_ddpm_reproduces_the_published_values(prediction, total):
    """One randn of the sample's shape a step, none in the last, x0 clipped. Without the clipping: 263.34 and 202.30."""
    d = GaussianDiffusion(1000, "linear", prediction)
    generator = torch.manual_seed(0)
    noise = lambda x: torch.randn(x.shape, generator=generator)  # noqa: E731
    x = ddpm(d.denoiser(golden_model, clip_x0=1.0), golden_sample(), d, range(999, -1, -1), noise)
    assert x.abs().sum().item() == pytest.approx(total, abs=0.1)


@pytest.mark.parametrize(("prediction", "total"), [("eps", 172.0067), ("v", 52.5302)])
def test_ddim_reproduces_the_published_values(prediction, total):
    """The reference's steps are "leading", 900 .. 0, and end at abar = 1; ours are "trailing", so they are given here.

    The reference clips x0 and keeps the model's eps, where ours takes eps from the clipped x0: on this sample x0 stays
    within [-1, 1], so that the two agree.
    """
    d = GaussianDiffusion(1000, "linear", prediction)
    x = ddim(d.denoiser(golden_model, clip_x0=1.0), golden_sample(), d, range(900, -1, -100))
    assert x.abs().sum().item() == pytest.approx(total, abs=0.01)


# The exact denoiser.


@pytest.mark.parametrize("sampler", [ddpm, partial(ddim, eta=1.0), partial(ddim, eta=0.5)])
def test_noisy_samplers_recover_mean_and_variance(sampler):
    """Within five standard errors, and 1.5 % for the 1000 steps being finite."""
    d, n = GaussianDiffusion(1000, "cosine"), 10_000
    generator = torch.Generator().manual_seed(0)
    noise = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    x = sampler(gaussian_denoiser(d), noise(torch.empty(n, 1)), d, range(999, -1, -1), noise)
    assert x.mean().item() == pytest.approx(MEAN, abs=5 * DEVIATION / math.sqrt(n))
    assert x.var().item() == pytest.approx(DEVIATION**2, rel=0.015 + 5 * math.sqrt(2 / n))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
@pytest.mark.parametrize(("sampler", "steps", "error"), [(ddim, 500, 0.03), (dpmpp, 250, 0.004)])
def test_deterministic_samplers_carry_quantiles_to_quantiles(schedule, sampler, steps, error):
    """So the mean and the variance are right, and no sample trades places with another."""
    d = GaussianDiffusion(1000, schedule)
    x = sampler(gaussian_denoiser(d), at_time(d, 999), d, spaced_timesteps(1000, steps))
    torch.testing.assert_close(x, MEAN + DEVIATION * NORMALS, rtol=0, atol=error)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
@pytest.mark.parametrize("steps", [10, 20, 40])
def test_dpmpp_beats_ddim_at_equal_steps(schedule, steps):
    d = GaussianDiffusion(1000, schedule)
    errors = []
    for sampler in (ddim, dpmpp):
        x = sampler(gaussian_denoiser(d), at_time(d, 999), d, spaced_timesteps(1000, steps))
        errors.append((x - MEAN - DEVIATION * NORMALS).abs().max().item())
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
def test_dpmpp_is_of_second_order_and_ddim_of_first(schedule):
    """Halving the steps divides the error by 4 and by 2, on the way from t = 900 to t = 20."""
    d = GaussianDiffusion(1000, schedule)

    def error(sampler, steps):
        states = []
        timesteps = torch.linspace(900, 20, steps + 1).round().int().tolist()
        sampler(watch(gaussian_denoiser(d), lambda t, x, x0: states.append(x)), at_time(d, 900), d, timesteps)
        return (states[-1] - at_time(d, 20)).abs().max().item()

    assert 3.4 < error(dpmpp, 32) / error(dpmpp, 64) < 4.8
    assert 1.8 < error(ddim, 32) / error(ddim, 64) < 2.2


def test_dpmpp_takes_the_steps_of_its_paper():
    """Lu et al. 2022, algorithm 2, on a single number, with a denoiser whose values have no structure."""
    d, clean = GaussianDiffusion(1000, "linear"), {900: 0.3, 500: -0.8, 100: 0.5}
    alpha = {t: math.sqrt(d.alphas_cumprod[t].item()) for t in clean}
    sigma = {t: math.sqrt(1 - d.alphas_cumprod[t].item()) for t in clean}
    h = {t: math.log(alpha[t] / sigma[t]) - math.log(alpha[s] / sigma[s]) for s, t in pairwise(clean)}
    x500 = sigma[500] / sigma[900] * 1.7 - alpha[500] * (math.exp(-h[500]) - 1) * 0.3
    r = h[500] / h[100]
    extrapolated = (1 + 1 / (2 * r)) * -0.8 - 1 / (2 * r) * 0.3
    x100 = sigma[100] / sigma[500] * x500 - alpha[100] * (math.exp(-h[100]) - 1) * extrapolated
    states = []
    denoise = watch(lambda x, t: torch.full_like(x, clean[t]), lambda t, x, x0: states.append(x.item()))
    last = dpmpp(denoise, torch.tensor([[1.7]], dtype=torch.float64), d, list(clean))
    assert states == pytest.approx([1.7, x500, x100], rel=1e-9)
    assert last.item() == 0.5


def test_ddim_with_eta_one_is_ddpm():
    d = GaussianDiffusion(1000, "sigmoid")
    x = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    timesteps = spaced_timesteps(1000, 13)
    one = ddpm(gaussian_denoiser(d), x, d, timesteps, RowNoise(range(4)))
    other = ddim(gaussian_denoiser(d), x, d, timesteps, RowNoise(range(4)), eta=1.0)
    torch.testing.assert_close(one, other)


def test_deterministic_samplers_ask_for_no_noise():
    d = GaussianDiffusion(100, "cosine")

    def no_noise(x):
        raise AssertionError("asked for noise")

    for sampler in (ddim, dpmpp):
        sampler(gaussian_denoiser(d), torch.ones(2, 3), d, spaced_timesteps(100, 5), no_noise)


@pytest.mark.parametrize("sampler", EVERY)
def test_one_step_lands_on_the_predicted_clean_sample(sampler):
    d, x = GaussianDiffusion(1000, "cosine"), torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampler(gaussian_denoiser(d), x, d, [999]), gaussian_denoiser(d)(x, 999))


@pytest.mark.parametrize("sampler", EVERY)
@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4, 4)])
def test_a_watched_denoiser_tells_of_every_step_its_state_and_prediction(sampler, shape):
    d, start, steps = GaussianDiffusion(1000, "cosine"), torch.randn(shape), []
    timesteps, denoise = spaced_timesteps(1000, 4), gaussian_denoiser(d)
    end = sampler(watch(denoise, lambda *step: steps.append(step)), start, d, timesteps, RowNoise([1, 2]))
    assert torch.equal(end, sampler(denoise, start, d, timesteps, RowNoise([1, 2])))  # watching changes nothing
    assert [t for t, _, _ in steps] == timesteps
    assert torch.equal(steps[0][1], start)
    for t, x, x0 in steps:
        assert torch.equal(x0, gaussian_denoiser(d)(x, t))
    torch.testing.assert_close(end, steps[-1][2])
    assert end.shape == shape


def test_a_denoiser_that_nobody_watches_is_itself():
    denoise = gaussian_denoiser(GaussianDiffusion(10))
    assert watch(denoise, None) is denoise


@pytest.mark.parametrize("sampler", EVERY)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    d, timesteps = GaussianDiffusion(100, "cosine"), spaced_timesteps(100, 7)

    def sample(seeds):
        noise = RowNoise(seeds)
        return sampler(gaussian_denoiser(d), noise(torch.empty(len(seeds), 3, 2)), d, timesteps, noise)

    together = sample([5, 6, 7])
    for i, seed in enumerate([5, 6, 7]):
        torch.testing.assert_close(sample([seed])[0], together[i])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
def test_ddim_inverted_finds_the_noise_and_leads_back(schedule):
    d = GaussianDiffusion(1000, schedule)
    x0 = MEAN + DEVIATION * NORMALS
    errors = []
    for steps in (250, 1000):
        timesteps = spaced_timesteps(1000, steps)
        x = ddim_invert(gaussian_denoiser(d), x0, d, timesteps)
        assert (x - at_time(d, 999)).abs().max() < 0.02 * 1000 / steps
        errors.append((ddim(gaussian_denoiser(d), x, d, timesteps) - x0).abs().max().item())
    assert errors[1] < 0.01
    assert errors[1] < 0.4 * errors[0]


# The table.


def test_a_sampler_is_chosen_by_its_row_with_the_settings_that_it_reads(monkeypatch):
    """Adding one touches nothing but the table."""

    def toy(denoise, x, diffusion, timesteps, noise, eta):
        return denoise(x, timesteps[0]) + eta

    with pytest.raises(UserError, match="sampler must be one of ddpm, ddim, dpmpp, not 'toy'"):
        DecoderSettings(sampler="toy")
    monkeypatch.setitem(SAMPLERS, "toy", SamplerRow(toy, reads=("eta",)))
    chosen = choose_sampler(DecoderSettings(sampler="toy", eta=0.25))
    assert chosen(lambda x, t: x * t, torch.ones(1), None, [3, 1], None).item() == 3.25
    with pytest.raises(UserError, match=r"eta must be 0 for the ddpm sampler \(only ddim, toy reads it\), not 0\.25"):
        DecoderSettings(sampler="ddpm", eta=0.25)


def test_samplers_are_chosen_by_name():
    for name, function in zip(SAMPLERS, (ddpm, ddim, dpmpp), strict=True):
        chosen = choose_sampler(DecoderSettings(sampler=name))
        assert chosen.func is function
        assert chosen.keywords == ({"eta": 0.0} if name == "ddim" else {})


# Noise per row, guidance, the choice of steps.


def test_a_row_of_noise_depends_on_its_own_seed_alone():
    x = torch.empty(3, 4, 5)
    noise = RowNoise([10, 11, 12], 1)
    first, second = noise(x), noise(x)
    for i, seed in enumerate([10, 11, 12]):
        alone = RowNoise([seed], 1)
        assert torch.equal(alone(x[:1])[0], first[i])
        assert torch.equal(alone(x[:1])[0], second[i])
    twins = RowNoise([12, 10, 12], 1)(x)
    assert torch.equal(twins, first[[2, 0, 2]])


def test_seeds_streams_and_calls_give_unrelated_noise():
    """No two of these 4 x 1000 numbers correlate beyond five standard errors; each is standard normal."""
    x = torch.empty(2, 1000)
    noise = RowNoise([0, 1])
    rows = torch.cat([noise(x), noise(x), RowNoise([0, 1], 1)(x), RowNoise([0, 1], 2)(x), RowNoise([0, 1], 1, 1)(x)])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / math.sqrt(1000)
    assert rows.mean(dim=1).abs().max() < 5 / math.sqrt(1000)
    assert (rows.var(dim=1) - 1).abs().max() < 5 * math.sqrt(2 / 1000)


def test_noise_leaves_the_global_generator_alone_and_keeps_the_dtype():
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    assert RowNoise([2**63, 0])(torch.empty(2, 3, dtype=torch.float64)).dtype == torch.float64
    assert torch.equal(torch.rand(2), want)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0, 7.5])
def test_guidance_extrapolates_from_null_to_condition_in_one_call(scale):
    generator = torch.Generator().manual_seed(0)
    x, condition = torch.randn(3, 4, generator=generator), torch.randn(6, 4, generator=generator)
    t, calls = torch.tensor([3, 5, 8]), []

    def model(x, t):
        calls.append(len(x))
        return x.sin() * condition + t[:, None]

    got = guided(model, scale)(x, t)
    yes, no = x.sin() * condition[:3] + t[:, None], x.sin() * condition[3:] + t[:, None]
    torch.testing.assert_close(got, no + scale * (yes - no))
    assert calls == [6]
    if scale in (0.0, 1.0):
        assert torch.equal(got, yes if scale else no)


def test_interval_holds_both_its_ends():
    model = on_interval(lambda x, t: x + 1, lambda x, t: x - 1, 3, 6.5)
    x = torch.zeros(2)
    inside = [t for t in range(10) if model(x, torch.tensor([t, t]))[0] == 1]
    assert inside == [3, 4, 5, 6]


@QUICK
@given(st.integers(2, 4000).flatmap(lambda timesteps: st.tuples(st.just(timesteps), st.integers(1, timesteps))))
def test_spaced_timesteps_descend_evenly_from_the_noisiest(sizes):
    timesteps, steps = sizes
    times = spaced_timesteps(timesteps, steps)
    assert len(times) == steps
    assert times[0] == timesteps - 1
    assert all(isinstance(t, int) and t >= 0 for t in times)
    gaps = [a - b for a, b in pairwise([*times, -1])]  # the clean sample, at -1, ends the row
    assert all(gap >= 1 and abs(gap - timesteps / steps) <= 1 for gap in gaps)


def test_spaced_timesteps_visit_all_if_asked_and_refuse_more():
    assert spaced_timesteps(6, 6) == [5, 4, 3, 2, 1, 0]
    assert spaced_timesteps(1000, 4) == [999, 749, 499, 249]
    for steps in (0, -1, 7):
        with pytest.raises(UserError, match="between 1 and 6"):
            spaced_timesteps(6, steps)


@QUICK
@given(st.integers(2, 2000).flatmap(lambda timesteps: st.tuples(st.just(timesteps), st.integers(1, timesteps))))
def test_karras_timesteps_descend_and_are_as_many_as_asked(sizes):
    timesteps, steps = sizes
    times = karras_timesteps(GaussianDiffusion(timesteps, "cosine"), steps)
    assert len(times) == steps
    assert all(isinstance(t, int) and 0 <= t < timesteps for t in times)
    assert all(a > b for a, b in pairwise(times))


def test_karras_timesteps_are_even_in_the_seventh_root_of_sigma():
    d = GaussianDiffusion(4000, "cosine")
    sigma = (1 / d.alphas_cumprod[karras_timesteps(d, 6)] - 1).sqrt()
    gaps = (sigma ** (1 / 7)).diff()
    assert sigma[0] == pytest.approx(80, rel=0.05)
    torch.testing.assert_close(gaps, gaps.mean().expand(5), rtol=0.05, atol=0)


def test_karras_timesteps_visit_all_if_asked_and_refuse_more():
    d = GaussianDiffusion(50, "cosine")
    assert karras_timesteps(d, 50) == list(range(49, -1, -1))
    for steps in (0, -1, 51):
        with pytest.raises(UserError, match="between 1 and 50"):
            karras_timesteps(d, steps)
