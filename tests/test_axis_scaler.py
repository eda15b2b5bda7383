"""The scaler of priors: along CLIP's coordinates, or along principal components that are whitened in part."""

import pytest
import torch
import torch.nn.functional as F

from unclip.layers import EmbeddingScaler
from unclip.prior.axis_scaler import AxisScaler

WHITENINGS = [0.0, 0.5, 1.0]


def unit_embeddings() -> torch.Tensor:
    """Points on the unit sphere whose coordinates are correlated (500, 6)."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    spread = torch.tensor([2.0, 1.0, 0.5, 0.3, 0.2, 0.1])
    x = torch.randn(500, 6, generator=generator) * spread @ mixing + torch.linspace(-3, 3, 6)
    return F.normalize(x, dim=-1)


@pytest.mark.parametrize("fit", [None, *WHITENINGS])
def test_unscaling_inverts_on_the_sphere_and_always_returns_to_it(fit):
    embeddings = unit_embeddings()
    scaler = AxisScaler(6)
    if fit is None:
        scaler.fit(embeddings)
    else:
        scaler.fit_components(embeddings, fit)
    torch.testing.assert_close(scaler.unscale(scaler.scale(embeddings)), embeddings, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaler.restore(scaler.scale(2 * embeddings)), 2 * embeddings, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaler.unscale(torch.randn(9, 6)).norm(dim=-1), torch.ones(9))


def test_stored_axes_are_columns_and_each_is_divided_by_its_own_number():
    """What files of weights hold: anything else would draw other embeddings from them."""
    scaler = AxisScaler(2)
    axes = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    scaler.load_state_dict({"mean": torch.tensor([1.0, 2.0]), "std": torch.tensor([2.0, 5.0]), "axes": axes})
    embedding = torch.tensor([[2.0, 3.0]])
    scaled = torch.tensor([[(0.6 - 0.8) / 2, (0.8 + 0.6) / 5]])
    torch.testing.assert_close(scaler.scale(embedding), scaled)
    torch.testing.assert_close(scaler.restore(scaled), embedding)


def test_fitting_along_the_coordinates_forgets_the_components():
    embeddings = unit_embeddings()
    scaler = AxisScaler(6).fit_components(embeddings, 0.5).fit(embeddings)
    assert torch.equal(scaler.scale(embeddings), EmbeddingScaler(6).fit(embeddings).scale(embeddings))


def test_along_the_coordinates_it_equals_the_plain_scaler_to_the_bit():
    embeddings = unit_embeddings()
    plain = EmbeddingScaler(6).fit(embeddings)
    scaler = AxisScaler(6)
    scaler.fit(embeddings)
    assert torch.equal(scaler.scale(embeddings), plain.scale(embeddings))
    scaled = torch.randn(9, 6)
    assert torch.equal(scaler.restore(scaled), scaled * plain.std + plain.mean)


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_components_are_uncorrelated_and_their_variances_are_powers_of_the_real_ones(whitening):
    embeddings = unit_embeddings().double()
    scaled = AxisScaler(6).fit_components(embeddings.float(), whitening).scale(embeddings.float()).double()
    covariance = scaled.T @ scaled / len(scaled)
    variances = torch.linalg.eigvalsh(torch.cov(embeddings.T, correction=0)).flip(0)
    expected = variances ** (1 - whitening)
    torch.testing.assert_close(covariance, (expected / expected.mean()).diag(), rtol=1e-3, atol=1e-3)


def test_a_constant_direction_is_not_blown_up():
    embeddings = unit_embeddings()
    embeddings[:, 2] = 0.25 + 1e-7 * torch.randn(len(embeddings))
    scaled = AxisScaler(6).fit_components(embeddings, 1.0).scale(embeddings)
    assert scaled.isfinite().all()
    assert scaled[:, 5].abs().max() < 0.1
    assert scaled.var(dim=0, correction=0).mean().item() == pytest.approx(1, abs=1e-3)
