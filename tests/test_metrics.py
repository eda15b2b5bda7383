"""Metrics against loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluation.metrics import (
    confusion_matrix,
    distance_of_draws,
    frechet_distance,
    in_manifold,
    mean_and_covariance,
    mean_with_interval,
    modality_gap,
    nearest_neighbours,
    recall_at_k,
    same_group_cosine,
    share_of_gap,
    share_with_interval,
)

QUICK = settings(deadline=None, max_examples=40, derandomize=True)


@QUICK
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 10), st.integers(0, 1000))
def test_recall_counts_the_rows_that_have_a_right_column_among_the_best(n, m, k, seed):
    generator = torch.Generator().manual_seed(seed)
    similarity, right = torch.randn(n, m, generator=generator), torch.rand(n, m, generator=generator) < 0.3
    hits = 0
    for row, good in zip(similarity.tolist(), right.tolist(), strict=True):
        hits += any(g and sum(other > value for other in row) < k for value, g in zip(row, good, strict=True))
    assert recall_at_k(similarity, right, k) == pytest.approx(hits / n)


@QUICK
@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.integers(0, 1000))
def test_the_ceiling_of_an_image_is_its_mean_cosine_to_the_rest_of_its_group(groups, seed):
    x = F.normalize(torch.randn(len(groups), 5, generator=torch.Generator().manual_seed(seed)), dim=-1)
    cosine = (x @ x.T).tolist()
    got = same_group_cosine(x, torch.tensor(groups)).tolist()
    for i, group in enumerate(groups):
        others = [cosine[i][j] for j in range(len(groups)) if j != i and groups[j] == group]
        assert got[i] == pytest.approx(sum(others) / len(others), abs=1e-5) if others else math.isnan(got[i])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@QUICK
@given(st.integers(1, 500), st.floats(0, 1))
def test_the_interval_of_a_share_ends_where_the_score_test_does(n, part):
    """Wilson's bounds are the p for which the found share lies 1.96 standard errors *of that p* away."""
    hits = round(part * n)
    got = share_with_interval(torch.arange(n) < hits)
    assert got["n"] == n
    assert got["value"] == pytest.approx(hits / n)
    assert 0 <= got["low"] <= got["value"] <= got["high"] <= 1
    for p in (got["low"], got["high"]):
        assert abs(hits / n - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), abs=1e-6)


def test_the_interval_of_a_mean_passes_over_what_is_not_there():
    got = mean_with_interval(torch.tensor([1.0, 2.0, float("nan"), 3.0]))
    assert (got["value"], got["n"]) == (2.0, 3)
    assert got["high"] - got["value"] == pytest.approx(1.959964 / math.sqrt(3))
    assert got["value"] - got["low"] == pytest.approx(1.959964 / math.sqrt(3))


def test_the_share_of_a_gap_and_its_interval_are_those_of_resampled_pairs():
    """The delta method's interval against ten thousand bootstraps; rows without a ceiling count in neither."""
    generator = np.random.default_rng(0)
    text = generator.normal(0.6, 0.05, 400)
    ceiling = text + generator.normal(0.1, 0.05, 400)
    sample = text + 0.4 * (ceiling - text) + generator.normal(0.02, 0.05, 400)
    ceiling[::8] = np.nan
    got = share_of_gap(*map(torch.from_numpy, (sample, text, ceiling)))
    known = ~np.isnan(ceiling)
    gained, gap = (sample - text)[known], (ceiling - text)[known]
    assert got["n"] == known.sum()
    assert got["value"] == pytest.approx(gained.mean() / gap.mean())
    rows = generator.integers(0, len(gap), (10_000, len(gap)))
    low, high = np.quantile(gained[rows].mean(axis=1) / gap[rows].mean(axis=1), (0.025, 0.975))
    assert got["low"] == pytest.approx(low, abs=0.01)
    assert got["high"] == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize(("shift", "noise"), [(0.0, 0.2), (0.0, 0.1), (0.3, 0.2), (1.0, 0.4)])
def test_distance_of_draws_is_the_frechet_distance_over_the_images_variance(shift, noise):
    centre = torch.zeros(16).index_fill(0, torch.tensor([0]), 1.0)
    off = centre + shift * torch.ones(16) / 4
    images = F.normalize(centre + 0.2 * random(20_000, 16, seed=1), dim=-1)
    draws = F.normalize(off + noise * random(20_000, 16, seed=2), dim=-1)
    cosines = [
        (draws * images).sum(dim=1),
        (draws * draws.roll(1, 0)).sum(dim=1),
        (images * images.roll(1, 0)).sum(dim=1),
    ]
    expected = frechet_distance(draws, images) / mean_and_covariance(images)[1].trace().item()
    assert distance_of_draws(*cosines) == pytest.approx(expected, abs=0.03)
    cosines[2][::3] = torch.nan
    assert distance_of_draws(*cosines) == pytest.approx(expected, abs=0.03)


def test_distance_of_draws_is_1_for_the_mean_and_nothing_where_images_do_not_differ():
    ceiling = torch.full((5,), 0.9)
    assert distance_of_draws(ceiling, ceiling, ceiling) == pytest.approx(0)
    assert distance_of_draws(ceiling.sqrt(), torch.ones(5), ceiling) == pytest.approx(1, abs=0.03)
    assert math.isnan(distance_of_draws(ceiling, ceiling, torch.ones(5)))
    assert math.isnan(distance_of_draws(ceiling, ceiling, torch.full((5,), torch.nan)))


@pytest.mark.parametrize("gap", [0.0, 0.004, -0.1, math.nan])
def test_of_no_gap_there_is_no_share(gap):
    """Where captions say nearly all, the text embedding is as close as another image: 0.894 to 0.898, say."""
    text = 0.89 + 0.01 * random(50)
    got = share_of_gap(text - 0.003, text, text + gap)
    assert got["n"] == 0
    assert math.isnan(got["value"])
    noisy = share_of_gap(text, text, text + 0.02 + 0.5 * random(50, seed=1) - 0.5 * random(50, seed=1).mean())
    assert math.isnan(noisy["value"]), "a gap within its own interval"


def test_modality_gap_is_the_distance_of_the_centres():
    images, texts = random(9, 4, seed=1), random(5, 4, seed=2)
    expected = np.linalg.norm(images.numpy().mean(axis=0) - texts.numpy().mean(axis=0))
    assert modality_gap(images, texts) == pytest.approx(expected, rel=1e-5)


@QUICK
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_confusion_counts_pairs(pairs):
    got = confusion_matrix(*torch.tensor(pairs).T, classes=4).tolist()
    assert got == [[pairs.count((i, j)) for j in range(4)] for i in range(4)]


@QUICK
@given(st.integers(1, 6), st.integers(0, 1000))
def test_frechet_distance_equals_its_definition(dim, seed):
    """With a general matrix root: the eigenvalues of A B, whose roots sum to tr (A B)^1/2."""
    a = random(40, dim, seed=seed) * torch.linspace(0.5, 2, dim)
    b = random(30, dim, seed=seed + 1) @ random(dim, dim, seed=seed + 2) + 1
    (x, y) = (a.double().numpy(), b.double().numpy())
    cov_x, cov_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    roots = np.sqrt(np.linalg.eigvals(cov_x @ cov_y).astype(complex)).real.sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_frechet_distance_of_a_set_to_itself_to_its_shift_and_to_its_double():
    a = random(500, 8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 3) == pytest.approx(8 * 9, rel=1e-6)
    centred = a - a.mean(dim=0)
    assert frechet_distance(centred, 2 * centred) == pytest.approx(centred.double().T.cov().trace().item(), rel=1e-6)


def test_frechet_distance_holds_with_fewer_samples_than_dimensions():
    a, b = random(5, 16, seed=1), random(400, 16, seed=2)
    assert math.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)


@QUICK
@given(st.integers(1, 12), st.integers(3, 12), st.integers(1, 3), st.integers(0, 1000))
def test_nearest_neighbours_equal_a_loop(n, m, k, seed):
    a, b = random(n, 3, seed=seed), random(m, 3, seed=seed + 1)
    distances, rows = nearest_neighbours(a, b, k, chunk=5)
    for i in range(n):
        expected = sorted((math.dist(a[i], b[j]), j) for j in range(m))[:k]
        assert distances[i].tolist() == pytest.approx([d for d, _ in expected], abs=1e-4)
        assert rows[i].tolist() == [j for _, j in expected]


@QUICK
@given(st.integers(1, 12), st.integers(5, 12), st.integers(1, 3), st.integers(0, 1000))
def test_the_manifold_is_that_of_its_definition(n, m, k, seed):
    inside, of = 1.5 * random(n, 2, seed=seed), random(m, 2, seed=seed + 1)
    radius = [sorted(math.dist(of[i], of[j]) for j in range(m) if j != i)[k - 1] for i in range(m)]
    expected = [any(math.dist(inside[i], of[j]) <= radius[j] for j in range(m)) for i in range(n)]
    assert in_manifold(inside, of, k, chunk=5).tolist() == expected


def test_a_set_lies_in_its_own_manifold_and_a_set_far_away_does_not():
    a = random(50, 4)
    assert in_manifold(a, a).all()
    assert not in_manifold(a + 100, a).any()
