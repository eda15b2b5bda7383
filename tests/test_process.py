"""The processes with float times, the times at which they are visited, and what networks predict along them."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from gaussians import PROCESSES, SCHEDULES
from hypothesis import given, settings
from hypothesis import strategies as st
from test_diffusion import reference_abar

from unclip.diffusion import (
    CLEAN,
    GaussianDiffusion,
    Level,
    ProcessConfig,
    StraightPath,
    VariancePreserving,
    at_level,
    even_levels,
    karras_levels,
    make_denoiser,
)
from unclip.diffusion.prediction import (
    add_noise,
    min_snr_weight,
    noise_from_x0,
    noised_pair,
    training_target,
    x0_from_output,
)
from unclip.diffusion.process import NoiseLevels
from unclip.errors import UserError
from unclip.fields import check

QUICK = settings(deadline=None, max_examples=60, derandomize=True)
TIMES = torch.linspace(0, 1, 3001, dtype=torch.float64)
PREDICTIONS = [
    *((name, p) for name in SCHEDULES for p in ("x0", "eps", "v")),
    ("straight", "x0"),
    ("straight", "velocity"),
]


def steps_of(levels: list[Level], timesteps: int) -> list[int]:
    """The steps 0 .. T-1 of the table that levels lie at, without the clean one, which has to be the last."""
    assert levels[-1] == CLEAN
    steps = [level.t * timesteps - 1 for level in levels[:-1]]
    assert steps == pytest.approx([round(step) for step in steps], abs=1e-6)
    return [round(step) for step in steps]


# alpha and sigma.


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [2, 10, 1000])
def test_levels_at_the_times_of_the_table_are_the_table_s_to_the_bit(schedule, timesteps):
    table = GaussianDiffusion(timesteps, schedule).alphas_cumprod
    times = (torch.arange(timesteps) + 1).double() / timesteps
    process = VariancePreserving(timesteps, schedule)
    alpha, sigma = process.alpha_sigma(times)
    assert alpha.dtype == sigma.dtype == torch.float64
    assert torch.equal(alpha, table.sqrt())
    assert torch.equal(sigma, (1 - table).sqrt())
    for step in (0, timesteps // 2, timesteps - 1):
        level = process.level((step + 1) / timesteps)
        assert (level.alpha, level.sigma) == (alpha[step].item(), sigma[step].item())


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_process_starts_clean_and_only_grows_noisier(process):
    alpha, sigma = process.alpha_sigma(TIMES)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert process.level(0.0) == CLEAN
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    assert alpha[-1] < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_between_the_steps_of_its_table_variance_is_preserved(schedule):
    alpha, sigma = PROCESSES[schedule].alpha_sigma(TIMES)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(TIMES))


def test_the_straight_path_is_exact():
    alpha, sigma = StraightPath().alpha_sigma(TIMES)
    assert torch.equal(alpha, 1 - TIMES)
    assert torch.equal(sigma, TIMES)
    assert StraightPath().level(0.25) == Level(0.25, 0.75, 0.25)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_alpha_and_sigma_have_the_shape_of_the_times(process):
    alpha, sigma = process.alpha_sigma(torch.full((2, 3), 0.5))
    assert alpha.shape == sigma.shape == (2, 3)


def test_the_network_is_told_steps_of_the_table_or_thousandths_of_the_path():
    assert VariancePreserving(50).network_time(1.0) == 49
    assert VariancePreserving(50).network_time(torch.tensor([0.02, 1.0])).tolist() == pytest.approx([0, 49])
    assert StraightPath().network_time(0.25) == 250


# Predictions.


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "prediction"), PREDICTIONS)
def test_what_a_network_has_to_put_out_stands_for_the_clean_sample(name, prediction):
    x0, noise = some(2, 3, 4)
    for t in (0.05, 0.4, 0.9):
        level = PROCESSES[name].level(t)
        x = add_noise(x0, noise, level.alpha, level.sigma)
        target = training_target(prediction, x0, noise, level.alpha, level.sigma)
        torch.testing.assert_close(x0_from_output(prediction, target, x, level.alpha, level.sigma), x0)
        torch.testing.assert_close(noise_from_x0(x, x0, level.alpha, level.sigma), noise)


def test_velocity_is_the_derivative_of_the_path():
    x0, noise = some(2, 3, 4)
    before, after = (add_noise(x0, noise, 1 - t, t) for t in (0.3, 0.301))
    torch.testing.assert_close((after - before) / 0.001, training_target("velocity", x0, noise, 0.7, 0.3))


@pytest.mark.parametrize(("name", "prediction"), PREDICTIONS)
def test_predictions_are_conversions_of_one_another(name, prediction):
    """A network that predicts otherwise, but means the same x0, makes the same denoiser."""
    process, x = PROCESSES[name], some(3, 4)
    level = process.level(0.6)
    x0 = torch.tanh(x)
    output = training_target(prediction, x0, noise_from_x0(x, x0, level.alpha, level.sigma), level.alpha, level.sigma)
    torch.testing.assert_close(make_denoiser(lambda x, level: output, prediction)(x, level).x0, x0)


@pytest.mark.parametrize(("name", "prediction"), PREDICTIONS)
def test_a_training_pair_is_what_a_network_is_given_and_has_to_put_out(name, prediction):
    """Row by row, each at a level of its own."""
    process = PROCESSES[name]
    x0, noise = some(2, 5, 2, 3)
    times = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    levels = NoiseLevels(process.network_time(times), *process.alpha_sigma(times))
    x, target = noised_pair(prediction, x0, noise, levels)
    for i, t in enumerate(times.tolist()):
        level = process.level(t)
        torch.testing.assert_close(x[i], add_noise(x0[i], noise[i], level.alpha, level.sigma))
        torch.testing.assert_close(target[i], training_target(prediction, x0[i], noise[i], level.alpha, level.sigma))


@pytest.mark.parametrize(("name", "prediction"), PREDICTIONS)
def test_a_model_of_one_parameter_learns_the_best_denoiser_there_is(name, prediction):
    """For samples of N(0, s^2) at one level, x0 is best told as the gain alpha s^2 / (alpha^2 s^2 + sigma^2) times x.

    Least squares on the training target, of a network that multiplies x by one number, finds just that.
    """
    deviation, count = 0.5, 200_000
    process = PROCESSES[name]
    x0, noise = some(2, count, 1)
    times = torch.full((count,), 0.5, dtype=torch.float64)
    levels = NoiseLevels(process.network_time(times), *process.alpha_sigma(times))
    x, target = noised_pair(prediction, deviation * x0, noise, levels)
    weight = (x * target).sum() / x.square().sum()
    level = process.level(0.5)
    gain = level.alpha * deviation**2 / (level.alpha**2 * deviation**2 + level.sigma**2)
    learned = make_denoiser(lambda x, level: weight * x, prediction)(torch.ones(1, 1, dtype=torch.float64), level)
    assert learned.x0.item() == pytest.approx(gain, abs=0.01)


@pytest.mark.parametrize(("name", "prediction"), PREDICTIONS)
def test_weighted_errors_agree_whatever_is_predicted(name, prediction):
    """One wrong guess of x0 costs min(SNR, 5) times its squared error, said in whatever way."""
    times = torch.tensor([0.02, 0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    alpha, sigma = PROCESSES[name].alpha_sigma(times)
    x0, noise, wrong = some(3, 5, 6)
    column = (alpha[:, None], sigma[:, None])
    implied = noise_from_x0(add_noise(x0, noise, *column), wrong, *column)
    error = training_target(prediction, wrong, implied, *column) - training_target(prediction, x0, noise, *column)
    cost = min_snr_weight(prediction, alpha, sigma) * error.square().mean(dim=1)
    torch.testing.assert_close(cost, (alpha / sigma).square().clamp(max=5) * (wrong - x0).square().mean(dim=1))


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_a_denoiser_gives_the_network_one_time_a_row_and_clips_x0(prediction):
    process, seen = VariancePreserving(100), []
    x0, noise = 2 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    level = process.level(0.61)
    x = add_noise(x0, noise, level.alpha, level.sigma)

    def network(x, time):
        seen.append(time.tolist())
        return training_target(prediction, x0, noise, level.alpha, level.sigma)

    for limit, want in ((None, x0), (1.0, x0.clamp(-1, 1))):
        denoise = make_denoiser(at_level(network, process), prediction, clip_x0=limit)
        torch.testing.assert_close(denoise(x, level).x0, want, rtol=1e-4, atol=1e-5)
    assert seen == [[60, 60, 60]] * 2


# Levels to train at.


@pytest.mark.parametrize(("timesteps", "batch"), [(1000, 10), (100, 100), (1000, 1), (10, 25)])
def test_drawn_times_fall_one_in_each_slice(timesteps, batch):
    process, generator = VariancePreserving(timesteps), torch.Generator().manual_seed(0)
    for _ in range(20):
        step = process.draw_levels(batch, generator).time
        assert torch.equal(step, step.round())
        i = torch.arange(batch)
        assert (step >= (i * timesteps / batch).floor()).all()
        assert (step <= ((i + 1) * timesteps / batch).ceil() - 1).all()


def test_drawn_times_are_uniform():
    process, generator = VariancePreserving(20), torch.Generator().manual_seed(0)
    steps = torch.cat([process.draw_levels(4, generator).time for _ in range(1000)])
    counts = torch.bincount(steps.long(), minlength=20)
    # 4000 draws, 200 a time: within five standard deviations of a binomial(1000, 1/5).
    assert len(counts) == 20
    assert (counts - 200).abs().max() < 5 * math.sqrt(1000 * 0.2 * 0.8)


def test_drawn_times_of_the_straight_path_fill_it_evenly():
    levels = StraightPath().draw_levels(1000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(levels.sigma, (torch.arange(1000) + 0.5) / 1000, rtol=0, atol=0.0006)
    torch.testing.assert_close(levels.alpha, 1 - levels.sigma)
    torch.testing.assert_close(levels.time, 1000 * levels.sigma)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("log_sigma", [None, (-0.8, 1.4)])
def test_drawn_levels_are_those_of_their_times_in_float32(process, log_sigma):
    levels = process.draw_levels(64, torch.Generator().manual_seed(0), log_sigma)
    assert {field.dtype for field in (levels.time, levels.alpha, levels.sigma)} == {torch.float32}
    for time, alpha, sigma in zip(levels.time.tolist(), levels.alpha, levels.sigma, strict=True):
        t = time / 1000 if isinstance(process, StraightPath) else (time + 1) / 1000
        assert process.level(t)[1:] == pytest.approx((alpha.item(), sigma.item()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_drawn_noise_levels_are_log_normal(name):
    generator = torch.Generator().manual_seed(0)
    drawn = [PROCESSES[name].draw_levels(8, generator, (-0.5, 0.9)) for _ in range(1000)]
    levels = torch.cat([(one.sigma / one.alpha).log() for one in drawn]).numpy()
    inside = (levels > -3) & (levels < 2)  # what the schedule's ends do not cut off
    want = statistics.NormalDist(-0.5, 0.9)
    assert inside.mean() > 0.99
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(levels, quantile) == pytest.approx(want.inv_cdf(quantile), abs=0.05)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_times_at_noise_levels_are_those_of_the_levels_themselves(process):
    times = torch.arange(1, 1000).double() / 1000
    alpha, sigma = process.alpha_sigma(times)
    torch.testing.assert_close(process.times_at(sigma / alpha), times)


def test_noise_levels_beyond_the_table_get_its_ends():
    assert VariancePreserving(1000).times_at(torch.tensor([0.0, 1e9])).tolist() == [0.001, 1.0]


def test_drawn_levels_are_the_generator_s_alone():
    process, state = VariancePreserving(1000), torch.get_rng_state()
    first, again, other = (process.draw_levels(8, torch.Generator().manual_seed(seed)).time for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


# Levels to sample at.


@QUICK
@given(st.integers(2, 4000).flatmap(lambda timesteps: st.tuples(st.just(timesteps), st.integers(1, timesteps))))
def test_even_levels_descend_evenly_from_the_noisiest(sizes):
    timesteps, count = sizes
    steps = steps_of(even_levels(VariancePreserving(timesteps), count), timesteps)
    assert len(steps) == count
    assert steps[0] == timesteps - 1
    assert min(steps) >= 0
    gaps = [a - b for a, b in pairwise([*steps, -1])]  # the clean sample ends the row
    assert all(gap >= 1 and abs(gap - timesteps / count) <= 1 for gap in gaps)


def test_even_levels_visit_all_if_asked_and_refuse_more():
    assert steps_of(even_levels(VariancePreserving(6), 6), 6) == [5, 4, 3, 2, 1, 0]
    assert steps_of(even_levels(VariancePreserving(1000), 4), 1000) == [999, 749, 499, 249]
    for steps in (0, -1, 7):
        with pytest.raises(UserError, match="between 1 and 6"):
            even_levels(VariancePreserving(6), steps)


def test_even_levels_of_the_straight_path_are_even():
    assert [level.t for level in even_levels(StraightPath(), 4)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    with pytest.raises(UserError, match="steps must be at least 1, not 0"):
        even_levels(StraightPath(), 0)


@QUICK
@given(st.integers(2, 2000).flatmap(lambda timesteps: st.tuples(st.just(timesteps), st.integers(1, timesteps))))
def test_karras_levels_descend_and_are_as_many_as_asked(sizes):
    timesteps, count = sizes
    steps = steps_of(karras_levels(VariancePreserving(timesteps), count), timesteps)
    assert len(steps) == count
    assert all(0 <= step < timesteps for step in steps)
    assert all(a > b for a, b in pairwise(steps))


@pytest.mark.parametrize("process", [VariancePreserving(4000), StraightPath()])
def test_karras_levels_are_even_in_the_seventh_root_of_sigma(process):
    sigma = torch.tensor([level.sigma / level.alpha for level in karras_levels(process, 6)[:-1]])
    gaps = (sigma ** (1 / 7)).diff()
    assert sigma[0].item() == pytest.approx(80, rel=0.05)
    torch.testing.assert_close(gaps, gaps.mean().expand(5), rtol=0.05, atol=0)


def test_karras_levels_visit_all_if_asked_and_refuse_more():
    process = VariancePreserving(50)
    assert steps_of(karras_levels(process, 50), 50) == list(range(49, -1, -1))
    for steps in (0, -1, 51):
        with pytest.raises(UserError, match="between 1 and 50"):
            karras_levels(process, steps)


# The config.


def test_a_config_builds_its_process():
    assert isinstance(ProcessConfig("straight", prediction="velocity").build(), StraightPath)
    process = ProcessConfig(timesteps=50, schedule="sigmoid").build()
    assert process.level(0.5).alpha == pytest.approx(math.sqrt(reference_abar("sigmoid", 50, 24)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ProcessConfig("straight", prediction="v"), "prediction must be x0 or velocity on the straight path, not 'v'"),
        (ProcessConfig(prediction="velocity"), "must be x0, eps or v for the variance-preserving process"),
        (ProcessConfig(schedule="quadratic"), "schedule must be one of cosine, linear, sigmoid"),
    ],
)
def test_a_process_that_cannot_be_is_refused(config, words):
    with pytest.raises(UserError, match=words):
        check(config)
    with pytest.raises(UserError, match="at least 2"):
        VariancePreserving(1)
