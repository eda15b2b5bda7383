"""Samplers against published values, and against a distribution whose exact denoiser is known."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from gaussians import DEVIATION, MEAN, NORMALS, PROCESSES, denoise, levels_at, quantiles

from unclip.diffusion import (
    CLEAN,
    Denoised,
    Level,
    RowNoise,
    VariancePreserving,
    at_level,
    ddim,
    ddpm,
    dpmpp,
    even_levels,
    guided,
    make_denoiser,
    on_interval,
    watch,
)
from unclip.diffusion.samplers import consistency
from unclip.errors import UserError
from unclip.registry import SAMPLERS, SamplerRow, choose_sampler, resolve
from unclip.settings import DecoderSettings

EVERY = [resolve(row.function) for row in SAMPLERS.values()]
COSINE = PROCESSES["cosine"]


def seeded_noise(seed: int):
    """Standard-normal noise like x, new at each call."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


# Published values: diffusers' scheduler tests. Behind them the values, to 1e-6, that the first release computed.


def golden_sample() -> torch.Tensor:
    return (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


def golden_denoiser(process, prediction: str):
    model = at_level(lambda x, time: x * (time / (time + 1)).view(-1, 1, 1, 1), process)
    return make_denoiser(model, prediction, clip_x0=1.0)


@pytest.mark.parametrize(("prediction", "total", "exact"), [("eps", 258.96, 258.959095), ("v", 202.03, 202.028293)])
def test_ddpm_reproduces_the_published_values(prediction, total, exact):
    """One randn of the sample's shape a step, none in the last, x0 clipped. Without the clipping: 263.34 and 202.30."""
    process = PROCESSES["linear"]
    generator = torch.manual_seed(0)
    noise = lambda x: torch.randn(x.shape, generator=generator)  # noqa: E731
    levels = levels_at(process, *range(999, -1, -1))
    x = ddpm(golden_denoiser(process, prediction), golden_sample(), levels, noise)
    assert x.abs().sum().item() == pytest.approx(total, abs=0.1)
    assert x.double().abs().sum().item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("prediction", "total", "exact"), [("eps", 172.0067, 172.006511), ("v", 52.5302, 52.530124)])
def test_ddim_reproduces_the_published_values(prediction, total, exact):
    """The reference's steps are "leading", 900 .. 0, and end at abar = 1; ours are "trailing", so they are given here.

    The reference clips x0 and keeps the model's eps, where ours takes eps from the clipped x0: on this sample x0 stays
    within [-1, 1], so that the two agree.
    """
    process = PROCESSES["linear"]
    x = ddim(golden_denoiser(process, prediction), golden_sample(), levels_at(process, *range(900, -1, -100)))
    assert x.abs().sum().item() == pytest.approx(total, abs=0.01)
    assert x.double().abs().sum().item() == pytest.approx(exact, rel=1e-6)


# The exact denoiser.


@pytest.mark.parametrize("name", ["cosine", "straight"])
@pytest.mark.parametrize("sampler", [ddpm, partial(ddim, eta=1.0), partial(ddim, eta=0.5)])
def test_noisy_samplers_recover_mean_and_variance(sampler, name):
    """Within five standard errors, and 1.5 % for the 1000 steps being finite."""
    n = 10_000
    noise = seeded_noise(0)
    start = noise(torch.empty(n, 1))
    x = sampler(denoise, start, even_levels(PROCESSES[name], 1000), noise)
    assert x.mean().item() == pytest.approx(MEAN, abs=5 * DEVIATION / math.sqrt(n))
    assert x.var().item() == pytest.approx(DEVIATION**2, rel=0.015 + 5 * math.sqrt(2 / n))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize(("sampler", "steps", "error"), [(ddim, 500, 0.03), (dpmpp, 250, 0.004)])
def test_deterministic_samplers_carry_quantiles_to_quantiles(process, sampler, steps, error):
    """So the mean and the variance are right, and no sample trades places with another."""
    levels = even_levels(process, steps)
    x = sampler(denoise, quantiles(levels[0]), levels)
    torch.testing.assert_close(x, MEAN + DEVIATION * NORMALS, rtol=0, atol=error)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("steps", [10, 20, 40])
def test_dpmpp_beats_ddim_at_equal_steps(process, steps):
    levels = even_levels(process, steps)
    ends = (sampler(denoise, quantiles(levels[0]), levels) for sampler in (ddim, dpmpp))
    first_order, second_order = ((x - MEAN - DEVIATION * NORMALS).abs().max().item() for x in ends)
    assert second_order < 0.9 * first_order


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_dpmpp_is_of_second_order_and_ddim_of_first(process):
    """Halving the steps divides the error by 4 and by 2, on the way from step 900 to step 20 of 1000."""

    def error(sampler, steps):
        between = torch.linspace(900, 20, steps + 1, dtype=torch.float64).round().int().tolist()
        levels = levels_at(process, *between, clean=False)
        return (sampler(denoise, quantiles(levels[0]), levels) - quantiles(levels[-1])).abs().max().item()

    assert 3.4 < error(dpmpp, 32) / error(dpmpp, 64) < 4.8
    assert 1.8 < error(ddim, 32) / error(ddim, 64) < 2.2


def test_dpmpp_takes_the_steps_of_its_paper():
    """Lu et al. 2022, algorithm 2, on a single number, with a denoiser whose values have no structure."""
    clean = {900: 0.3, 500: -0.8, 100: 0.5}
    levels = dict(zip(clean, levels_at(PROCESSES["linear"], *clean, clean=False), strict=True))
    alpha = {t: level.alpha for t, level in levels.items()}
    sigma = {t: level.sigma for t, level in levels.items()}
    h = {t: math.log(alpha[t] / sigma[t]) - math.log(alpha[s] / sigma[s]) for s, t in pairwise(clean)}
    x500 = sigma[500] / sigma[900] * 1.7 - alpha[500] * (math.exp(-h[500]) - 1) * 0.3
    r = h[500] / h[100]
    extrapolated = (1 + 1 / (2 * r)) * -0.8 - 1 / (2 * r) * 0.3
    x100 = sigma[100] / sigma[500] * x500 - alpha[100] * (math.exp(-h[100]) - 1) * extrapolated
    states = []
    answers = {levels[t]: x0 for t, x0 in clean.items()}
    observed = watch(
        lambda x, level: Denoised(torch.full_like(x, answers[level])), lambda _, x, x0: states.append(x.item())
    )
    last = dpmpp(observed, torch.tensor([[1.7]], dtype=torch.float64), [*levels.values(), CLEAN])
    assert states == pytest.approx([1.7, x500, x100], rel=1e-9)
    assert last.item() == 0.5


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_ddim_with_eta_one_is_ddpm(process):
    x = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = even_levels(process, 13)
    ancestral = ddpm(denoise, x, levels, RowNoise(range(4)))
    implicit = ddim(denoise, x, levels, RowNoise(range(4)), eta=1.0)
    torch.testing.assert_close(ancestral, implicit)


def test_ddim_without_noise_is_eulers_method_on_the_straight_path():
    """dx/dt = (x - x0) / t, the velocity that the denoiser stands for."""
    levels = even_levels(PROCESSES["straight"], 7)
    x = quantiles(levels[0])
    euler = x
    for level, lower in pairwise(levels):
        euler = euler + (lower.t - level.t) * (euler - denoise(euler, level).x0) / level.t
    torch.testing.assert_close(ddim(denoise, x, levels), euler)


def test_ddpm_takes_a_variance_that_the_denoiser_has_learned():
    """From one level to the next x0 = 0 gives a mean of a multiple of x, and the noise is as large as it is told."""
    levels = levels_at(COSINE, 700, 300, clean=False)
    start = torch.zeros(50_000, 2, dtype=torch.float64)
    deviations = torch.tensor([0.1, 2.0], dtype=torch.float64)

    def learned(x, level):
        return Denoised(torch.zeros_like(x), (2 * deviations.log()).expand_as(x))

    drawn = ddpm(learned, start, levels, seeded_noise(0))
    torch.testing.assert_close(drawn.std(dim=0), deviations, rtol=0.02, atol=0)
    known = ddpm(lambda x, level: Denoised(torch.zeros_like(x)), start, levels, seeded_noise(0))
    lower, level = levels[1], levels[0]
    step_variance = 1 - (level.alpha / lower.alpha) ** 2
    want = math.sqrt(step_variance) * lower.sigma / level.sigma
    torch.testing.assert_close(known.std(dim=0), torch.full((2,), want, dtype=torch.float64), rtol=0.02, atol=0)


def test_the_last_step_of_ddpm_adds_no_noise_whatever_variance_was_learned():
    x = torch.ones(3, 2)
    drawn = ddpm(lambda x, level: Denoised(0.5 * x, torch.full_like(x, 3.0)), x, levels_at(COSINE, 500))
    torch.testing.assert_close(drawn, 0.5 * x)


def test_deterministic_samplers_ask_for_no_noise():
    def no_noise(x):
        raise AssertionError("asked for noise")

    for sampler in (ddim, dpmpp):
        sampler(denoise, torch.ones(2, 3), even_levels(VariancePreserving(100), 5), no_noise)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("sampler", EVERY)
def test_one_step_lands_on_the_predicted_clean_sample(sampler, process):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    [level, clean] = even_levels(process, 1)
    torch.testing.assert_close(sampler(denoise, x, [level, clean]), denoise(x, level).x0)


@pytest.mark.parametrize("sampler", EVERY)
@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4, 4)])
def test_a_watched_denoiser_tells_of_every_step_its_state_and_prediction(sampler, shape):
    start, steps = torch.randn(shape), []
    levels = even_levels(COSINE, 4)
    end = sampler(watch(denoise, lambda *step: steps.append(step)), start, levels, RowNoise([1, 2]))
    assert torch.equal(end, sampler(denoise, start, levels, RowNoise([1, 2])))  # watching changes nothing
    assert [level for level, _, _ in steps] == levels[:-1]
    assert torch.equal(steps[0][1], start)
    for level, x, x0 in steps:
        assert torch.equal(x0, denoise(x, level).x0)
    torch.testing.assert_close(end, steps[-1][2])
    assert end.shape == shape


def test_a_denoiser_that_nobody_watches_is_itself():
    assert watch(denoise, None) is denoise


@pytest.mark.parametrize("sampler", EVERY)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    levels = even_levels(VariancePreserving(100), 7)

    def sample(seeds):
        noise = RowNoise(seeds)
        return sampler(denoise, noise(torch.empty(len(seeds), 3, 2)), levels, noise)

    together = sample([5, 6, 7])
    for i, seed in enumerate([5, 6, 7]):
        torch.testing.assert_close(sample([seed])[0], together[i])


# The table.


def test_a_sampler_is_chosen_by_its_row_with_the_settings_that_it_reads(monkeypatch):
    """Adding one touches nothing but the table."""

    def toy(denoise, x, levels, noise, eta):
        return denoise(x, levels[0]) + eta

    with pytest.raises(UserError, match="sampler must be one of ddpm, ddim, dpmpp, consistency, not 'toy'"):
        DecoderSettings(sampler="toy")
    monkeypatch.setitem(SAMPLERS, "toy", SamplerRow(toy, reads=("eta",)))
    chosen = choose_sampler(DecoderSettings(sampler="toy", eta=0.25))
    assert chosen(lambda x, level: x * level, torch.ones(1), [3, 1], None).item() == 3.25
    with pytest.raises(UserError, match=r"eta must be 0 for the ddpm sampler \(only ddim, toy reads it\), not 0\.25"):
        DecoderSettings(sampler="ddpm", eta=0.25)


def test_samplers_are_chosen_by_name():
    for name, function in zip(SAMPLERS, (ddpm, ddim, dpmpp, consistency), strict=True):
        chosen = choose_sampler(DecoderSettings(sampler=name))
        assert chosen.func is function
        assert chosen.keywords == ({"eta": 0.0} if name == "ddim" else {})


# Noise per row, and guidance.


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
    level, calls = Level(0.3, 0.8, 0.6), []

    def model(x, level):
        calls.append(len(x))
        return x.sin() * condition + level.t

    guided_output = guided(model, scale)(x, level)
    conditional, null = x.sin() * condition[:3] + 0.3, x.sin() * condition[3:] + 0.3
    torch.testing.assert_close(guided_output, null + scale * (conditional - null))
    assert calls == [6]
    if scale in (0.0, 1.0):
        assert torch.equal(guided_output, conditional if scale else null)


def test_interval_holds_both_its_ends():
    model = on_interval(lambda x, level: x + 1, lambda x, level: x - 1, 3, 6.5)
    inside = [t for t in range(10) if model(torch.zeros(2), Level(t, 0.0, 1.0))[0] == 1]
    assert inside == [3, 4, 5, 6]
    assert [model(torch.zeros(2), Level(t, 0.0, 1.0))[0].item() for t in (6.5, 6.6)] == [1, -1]
