"""The diffusion process against closed forms that are written here a second time, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unclip.diffusion.gaussian import GaussianDiffusion
from unclip.errors import UserError

SCHEDULES = ("cosine", "linear", "sigmoid")
PREDICTIONS = ("x0", "eps", "v")
QUICK = settings(deadline=None, max_examples=60, derandomize=True)


def reference_betas(schedule: str, timesteps: int) -> np.ndarray:
    if schedule == "linear":
        scale = 1000 / timesteps
        betas = [scale * (1e-4 + (0.02 - 1e-4) * t / (timesteps - 1)) for t in range(timesteps)]
    else:
        abar = cosine if schedule == "cosine" else sigmoid
        betas = [1 - abar((t + 1) / timesteps) / abar(t / timesteps) for t in range(timesteps)]
    return np.minimum(betas, 0.999)


def cosine(u: float) -> float:
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2


def sigmoid(u: float) -> float:
    """Start -3, end 3, tau 1: symmetric, so that the logistic function may be written as a tanh."""
    return (math.tanh(1.5) - math.tanh((6 * u - 3) / 2)) / (2 * math.tanh(1.5))


def reference_abar(schedule: str, timesteps: int, t: int) -> float:
    return 1.0 if t < 0 else math.prod((1 - reference_betas(schedule, timesteps)[: t + 1]).tolist())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [2, 10, 250, 1000, 4000])
def test_betas_and_their_products_match_the_closed_forms(schedule, timesteps):
    d, betas = GaussianDiffusion(timesteps, schedule), reference_betas(schedule, timesteps)
    assert d.betas.dtype == d.alphas_cumprod.dtype == torch.float64
    np.testing.assert_allclose(d.betas, betas, rtol=1e-9)
    np.testing.assert_allclose(d.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-9)


@pytest.mark.parametrize(("schedule", "abar"), [("cosine", cosine), ("sigmoid", sigmoid)])
def test_only_the_last_step_is_clipped(schedule, abar):
    d = GaussianDiffusion(1000, schedule)
    closed = [abar((t + 1) / 1000) for t in range(999)]
    np.testing.assert_allclose(d.alphas_cumprod[:-1], closed, rtol=1e-8)
    assert d.betas[-1] == 0.999
    assert d.betas[:-1].max() < 0.999


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [2, 7, 1000])
def test_noise_only_grows_and_never_drowns_all(schedule, timesteps):
    d = GaussianDiffusion(timesteps, schedule)
    assert ((d.betas > 0) & (d.betas <= 0.999)).all()
    assert (d.alphas_cumprod.diff() < 0).all()
    assert 0 < d.alphas_cumprod[-1] < d.alphas_cumprod[0] < 1


def test_the_linear_schedule_is_that_of_ho_et_al():
    betas = GaussianDiffusion(1000, "linear").betas
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-12)
    assert betas[999].item() == pytest.approx(0.02, rel=1e-12)
    assert betas[500].item() - betas[499].item() == pytest.approx(0.0199 / 999, rel=1e-6)


@st.composite
def cases(draw):
    """A process, clean samples and noise of any trailing shape, and times as an int or one a row."""
    timesteps = draw(st.sampled_from([10, 1000]))
    schedule = draw(st.sampled_from(SCHEDULES))
    shape = draw(st.sampled_from([(1, 7), (3, 5), (3, 1), (1, 1, 2, 2), (3, 2, 4, 5), (2, 3, 2, 2)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    times = st.integers(0, timesteps - 1)
    t = draw(st.one_of(times, st.lists(times, min_size=shape[0], max_size=shape[0]).map(torch.tensor)))
    x0, noise = torch.randn(2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    abar = [reference_abar(schedule, timesteps, i) for i in (t.tolist() if torch.is_tensor(t) else [t] * shape[0])]
    abar = torch.tensor(abar, dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    return GaussianDiffusion(timesteps, schedule), x0, noise, t, abar.sqrt(), (1 - abar).sqrt()


def assert_close(got, want, dtype, condition=1.0):
    """`condition` is what rounding errors were divided by."""
    assert got.dtype == dtype
    assert got.shape == want.shape
    error = (got.double() - want.double()).abs() * condition
    assert error.max() < {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]


@QUICK
@given(cases())
def test_noising_and_all_conversions_match_their_closed_forms(case):
    d, x0, noise, t, a, b = case
    dtype, x, e = x0.dtype, x0.double(), noise.double()
    assert_close(d.add_noise(x0, noise, t), a * x + b * e, dtype)
    assert_close(d.v_from_x0(x0, noise, t), a * e - b * x, dtype)
    # The other conversions start from x_t, whatever it is: here two unrelated tensors.
    assert_close(d.x0_from_eps(x0, noise, t), (x - b * e) / a, dtype, a)
    assert_close(d.eps_from_x0(x0, noise, t), (x - a * e) / b, dtype, b)
    assert_close(d.x0_from_v(x0, noise, t), a * x - b * e, dtype)
    assert_close(d.eps_from_v(x0, noise, t), b * x + a * e, dtype)


@QUICK
@given(cases())
def test_every_conversion_leads_back(case):
    d, x0, noise, t, a, b = case
    dtype, xt, v = x0.dtype, d.add_noise(x0, noise, t), d.v_from_x0(x0, noise, t)
    assert_close(d.x0_from_eps(xt, noise, t), x0, dtype, a)
    assert_close(d.eps_from_x0(xt, x0, t), noise, dtype, b)
    assert_close(d.x0_from_v(xt, v, t), x0, dtype)
    assert_close(d.eps_from_v(xt, v, t), noise, dtype)


@QUICK
@given(cases(), st.sampled_from(PREDICTIONS))
def test_the_target_stands_for_the_clean_sample(case, prediction):
    old, x0, noise, t, a, b = case
    d = GaussianDiffusion(old.timesteps, old.schedule, prediction)
    target = d.target(x0, noise, t)
    assert_close(target, {"x0": x0, "eps": noise, "v": a * noise.double() - b * x0.double()}[prediction], x0.dtype)
    assert_close(d.to_x0(target, d.add_noise(x0, noise, t), t), x0, x0.dtype, a if prediction == "eps" else 1.0)


def bayes(abar: float, abar_prev: float, x0: float, xt: float) -> tuple[float, float]:
    """Multiply the Gaussians q(x_prev | x0) and q(x_t | x_prev), the latter as a function of x_prev."""
    alpha = abar / abar_prev
    precision = 1 / (1 - abar_prev) + alpha / (1 - alpha)
    mean = (math.sqrt(abar_prev) * x0 / (1 - abar_prev) + math.sqrt(alpha) * xt / (1 - alpha)) / precision
    return mean, 1 / precision


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "t_prev"), [(1, None), (500, None), (999, None), (999, 0), (500, 450), (30, 3)])
def test_the_posterior_is_bayes_rule(schedule, t, t_prev):
    x0, xt = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, variance = GaussianDiffusion(1000, schedule).posterior(x0, xt, t, t_prev)
    abar, abar_prev = (
        reference_abar(schedule, 1000, t),
        reference_abar(schedule, 1000, t - 1 if t_prev is None else t_prev),
    )
    for i in np.ndindex(3, 4):
        want_mean, want_variance = bayes(abar, abar_prev, x0[i].item(), xt[i].item())
        assert mean[i].item() == pytest.approx(want_mean, rel=1e-6, abs=1e-9)
        assert variance.item() == pytest.approx(want_variance, rel=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4, 4)])
def test_the_posterior_takes_a_time_for_every_row(shape):
    d = GaussianDiffusion(100, "cosine")
    x0, xt = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    t, t_prev = torch.tensor([99, 40, 7]), torch.tensor([80, 39, -1])
    mean, variance = d.posterior(x0, xt, t, t_prev)
    assert variance.shape == (3, *[1] * (len(shape) - 1))
    for i in range(3):
        row_mean, row_variance = d.posterior(x0[i : i + 1], xt[i : i + 1], t[i].item(), t_prev[i].item())
        torch.testing.assert_close(mean[i : i + 1], row_mean)
        torch.testing.assert_close(variance[i].view(()), row_variance)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_posterior_of_the_clean_sample_is_the_clean_sample(schedule):
    d = GaussianDiffusion(1000, schedule)
    x0, xt = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for mean, variance in (d.posterior(x0, xt, 0), d.posterior(x0, xt, 700, -1)):
        torch.testing.assert_close(mean, x0)
        assert variance == 0


def test_the_posterior_variance_has_the_published_values():
    """Values of DDPM's linear schedule that diffusers' scheduler tests state for t = 0, 487 and 999."""
    d, x = GaussianDiffusion(1000, "linear"), torch.zeros(1, 1, dtype=torch.float64)
    variances = [d.posterior(x, x, t)[1].item() for t in (0, 487, 999)]
    np.testing.assert_allclose(variances, [0, 0.00979, 0.02], atol=1e-5)


def test_chained_posteriors_skip_like_one():
    """Going from t to s and from s to r by ancestral steps with the true x0 has the mean and variance of t to r."""
    d, x0, xt = GaussianDiffusion(1000, "sigmoid"), torch.tensor([[0.7]]).double(), torch.tensor([[-1.3]]).double()
    middle, middle_variance = d.posterior(x0, xt, 800, 500)
    mean, variance = d.posterior(x0, middle, 500, 100)
    slope = d.posterior(x0, middle + 1, 500, 100)[0] - mean
    direct_mean, direct_variance = d.posterior(x0, xt, 800, 100)
    torch.testing.assert_close(mean, direct_mean)
    torch.testing.assert_close((variance + slope**2 * middle_variance).squeeze(), direct_variance)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_loss_weights_are_those_of_min_snr(schedule, gamma):
    t = torch.tensor([0, 1, 50, 300, 500, 700, 998, 999])
    abar = [reference_abar(schedule, 1000, i) for i in t.tolist()]
    snr = np.array([a / (1 - a) for a in abar])
    want = {"x0": np.minimum(snr, gamma), "eps": np.minimum(1, gamma / snr), "v": np.minimum(snr, gamma) / (snr + 1)}
    for prediction in PREDICTIONS:
        weight = GaussianDiffusion(1000, schedule, prediction).loss_weight(t, gamma)
        assert weight.shape == (8,)
        np.testing.assert_allclose(weight, want[prediction], rtol=1e-5)


def test_weighted_errors_agree_whatever_is_predicted():
    """One and the same wrong guess of x0 costs the same, said as x0, as eps or as v: what min-SNR weights are for."""
    t = torch.tensor([0, 100, 400, 700, 950])
    x0, noise, wrong = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    costs = []
    for prediction in PREDICTIONS:
        d = GaussianDiffusion(1000, "cosine", prediction)
        eps = d.eps_from_x0(d.add_noise(x0, noise, t), wrong, t)
        error = d.target(wrong, eps, t) - d.target(x0, noise, t)
        costs.append(d.loss_weight(t) * error.square().mean(dim=1))
    torch.testing.assert_close(costs[0], costs[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(costs[0], costs[2], rtol=1e-5, atol=0)


def test_loss_weight_is_capped_at_five_unless_said():
    assert GaussianDiffusion(1000, "cosine", "x0").loss_weight(torch.tensor([0])).item() == 5


def test_settings_that_cannot_be_used_are_refused():
    with pytest.raises(UserError, match="cosine, linear, sigmoid"):
        GaussianDiffusion(10, "quadratic")
    with pytest.raises(UserError, match="x0, eps, v"):
        GaussianDiffusion(10, "cosine", "score")
    with pytest.raises(UserError, match="at least 2"):
        GaussianDiffusion(1)
