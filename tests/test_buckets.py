"""Buckets of numbers and principal components: what the autoregressive prior is made of."""

import pytest
import torch

from unclip.prior.buckets import QuantileBuckets
from unclip.prior.principal_components import PrincipalComponents


def fitted(values: torch.Tensor, counts: list[int], buckets: int = 16) -> QuantileBuckets:
    made = QuantileBuckets(values.shape[1], buckets)
    made.fit(values, torch.tensor(counts))
    return made


@pytest.fixture
def values() -> torch.Tensor:
    normal = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    return torch.stack([normal[:, 0], (normal[:, 1] / 2).exp()], dim=1)  # one of them skewed


def test_buckets_hold_equally_many_training_values_and_remember_their_mean(values):
    made = fitted(values, [16, 5])
    assert made.counts.tolist() == [16, 5]
    index = made.index(values)
    for number, count in enumerate((16, 5)):
        sizes = torch.bincount(index[:, number])
        assert sizes.max() - sizes.min() <= 1
        assert len(sizes) == count
        means = torch.stack([values[index[:, number] == i, number].mean() for i in range(count)])
        torch.testing.assert_close(made.means[number, :count], means)
    ranks = made.rank(index)
    assert 0 < ranks.min() < 0.1 < 0.9 < ranks.max() < 1


def test_the_density_of_equally_likely_buckets_integrates_to_one_and_is_the_gaussian_s(values):
    made = fitted(values[:, :1], [16])
    grid = torch.linspace(-12, 12, 48_001)[:, None]
    density = (made.log_density(grid)[:, 0] - torch.tensor(16.0).log()).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-3)
    gaussian = torch.distributions.Normal(0.0, 1.0).log_prob(grid[:, 0]).exp()
    assert torch.trapezoid((density - gaussian).abs(), grid[:, 0]) < 0.1  # in total variation twice that share


def test_draws_within_buckets_fall_into_them_and_have_the_training_values_moments(values):
    made = fitted(values, [16, 16])
    index = made.index(values)
    drawn = made.draw(index, torch.rand(values.shape, generator=torch.Generator().manual_seed(1)))
    assert (made.index(drawn) == index).float().mean() > 0.999  # rounding at an edge
    torch.testing.assert_close(drawn.mean(dim=0), values.mean(dim=0), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), values.std(dim=0), atol=0.15, rtol=0)
    assert (made.mean(index).std(dim=0) < values.std(dim=0)).all(), "means lose the variance within buckets"


@pytest.mark.parametrize("column", [[0.0] * 9, [0.0, 1.0], [1.0, 1.0, 1.0, 2.0], list(range(9))])
def test_few_and_repeated_values_have_fewer_buckets(column):
    values = torch.tensor(column, dtype=torch.float)[:, None]
    made = fitted(values, [16])
    index = made.index(values)
    assert (index < made.counts).all()
    assert all(buffer.isfinite().all() for buffer in made.buffers()), "trainings save finite numbers only"
    assert made.log_density(values).isfinite().all()
    assert made.draw(index, torch.full(index.shape, 0.5)).isfinite().all()


def test_principal_components_keep_the_share_of_the_variance_that_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    deviations = torch.tensor([3.0, 2.0, 1.0, 0.1, 0.1])
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    mean = torch.full((5,), 7.0)
    values = mean + (torch.randn(5000, 5, generator=generator) * deviations) @ rotation.T
    for share, count in ((0.6, 1), (0.9, 2), (0.99, 3), (1.0, 5)):
        made = PrincipalComponents(5)
        made.fit(values, share)
        components = made.project(values)
        assert made.count == components.shape[1] == count
        torch.testing.assert_close(made.deviations, deviations, atol=0.1, rtol=0)
        torch.testing.assert_close(components.std(dim=0), made.deviations[:count], rtol=1e-2, atol=0)
    unit = torch.nn.functional.normalize(values, dim=1)
    torch.testing.assert_close(made.restore(made.project(unit)), unit)
