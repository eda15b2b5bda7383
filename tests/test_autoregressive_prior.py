"""The autoregressive prior: kept keys and values, the exact likelihood, draws by seed, and its settings."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import close, randomise

from unclip.clip import TextFeatures
from unclip.prior.autoregressive_model import AutoregressiveConfig
from unclip.prior.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig, draw_bucket
from unclip.settings import PriorSettings

NETWORK = AutoregressiveConfig(embed_dim=6, text_width=5, context=8, width=16, layers=2, heads=2, buckets=12)
LENGTHS = torch.tensor([4, 2, 6])
ONE = PriorSettings(num_candidates=1)


def captions(rows: int = 3) -> TextFeatures:
    """Captions of unequal length."""
    generator = torch.Generator().manual_seed(1)
    text = F.normalize(torch.randn(3, 6, generator=generator), dim=-1)
    tokens = torch.randn(3, 6, 5, generator=generator)
    whole = TextFeatures(text, tokens, torch.arange(6) < LENGTHS[:, None], torch.zeros(3, dtype=torch.bool))
    return whole[torch.arange(rows) % 3]


def some_prior(variance: float = 0.999, **changes) -> AutoregressivePrior:
    """Random weights, and statistics of a cloud with two directions of large variance."""
    prior = AutoregressivePrior(AutoregressivePriorConfig(NETWORK, variance, dot_buckets=4, **changes))
    randomise(prior.network)
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.6, 0.4, 0.1, 0.0, 0.0, 0.0])
    images = torch.tensor([0, 0, 0, 0, 0, 1.0]) + torch.randn(2000, 6, generator=generator) * scales
    prior.fit(images, F.normalize(torch.randn(2000, 6, generator=generator), dim=-1))
    return prior


@pytest.fixture
def prior() -> AutoregressivePrior:
    return some_prior()


def test_components_of_small_variance_have_fewer_buckets(prior):
    assert prior.components.count == 3
    large = AutoregressivePrior(replace(prior.config, network=replace(NETWORK, buckets=64)))
    generator = torch.Generator().manual_seed(0)
    large.fit(torch.randn(2000, 6, generator=generator) * torch.tensor([1, 0.5, 0.01, 0, 0, 0]), torch.zeros(2000, 6))
    assert large.buckets.counts[1:3].tolist() == [64, pytest.approx(33, abs=2)]


def test_steps_with_kept_keys_and_values_give_what_one_pass_gives(prior):
    text = captions().drop(torch.tensor([False, True, False]))
    ranks = torch.rand(3, 3, generator=torch.Generator().manual_seed(2))
    read = (text.embedding, text.tokens, text.mask, text.empty)
    whole = prior.network(ranks, *read)  # (3, 4, buckets)
    logits, past = prior.network.prefix(*read)
    close(logits, whole[:, 0])
    for number in range(3):
        logits, past = prior.network.step(ranks[:, number], number, past)
        close(logits, whole[:, number + 1])


def test_a_number_s_prediction_depends_on_the_numbers_before_it_alone(prior):
    text = captions()
    ranks = torch.rand(3, 3, generator=torch.Generator().manual_seed(2))
    read = (text.embedding, text.tokens, text.mask, text.empty)
    before = prior.network(ranks, *read)
    ranks[:, 1] = 1 - ranks[:, 1]
    after = prior.network(ranks, *read)
    close(after[:, :2], before[:, :2])
    assert (after[:, 2:] - before[:, 2:]).abs().amax(dim=2).min() > 1e-3


def test_the_likelihood_is_a_density_it_integrates_to_one_for_any_network_and_caption():
    prior = some_prior(variance=0.5)
    assert prior.components.count == 1
    grid = torch.linspace(-9, 9, 1801)
    images = prior.components.mean + grid[:, None] * prior.components.directions[:, 0]
    for row in range(3):
        text = captions()[torch.full((len(grid),), row)]
        total = torch.trapezoid(prior.log_likelihood(images, text).exp(), grid)
        assert total.item() == pytest.approx(1, abs=0.01)


def test_an_untrained_prior_s_likelihood_is_that_of_the_gaussian_whose_quantiles_it_holds():
    """Closed form: independent components of deviations s have the entropy sum of ln(s sqrt(2 pi e)) nats."""
    deviations = torch.tensor([0.5, 0.3, 0.2])
    generator = torch.Generator().manual_seed(0)
    images, held_out = torch.randn(2, 20_000, 3, generator=generator) * deviations
    config = replace(NETWORK, embed_dim=3, buckets=64)
    prior = AutoregressivePrior(AutoregressivePriorConfig(config, variance=1.0))
    prior.fit(images, torch.zeros(20_000, 3))
    text = replace(captions(1000), embedding=torch.zeros(1000, 3))
    entropy = (deviations * (2 * torch.pi * torch.e) ** 0.5).log().sum()
    assert prior.log_likelihood(held_out[:1000], text).mean().item() == pytest.approx(-entropy.item(), abs=0.1)


def test_a_trained_prior_s_likelihood_is_that_of_the_gaussian_of_each_caption():
    """Two captions, each with a Gaussian of its own: a trained network knows which from the text."""
    generator = torch.Generator().manual_seed(0)
    config = AutoregressivePriorConfig(
        AutoregressiveConfig(embed_dim=2, text_width=2, context=1, width=16, layers=1, heads=1, buckets=24),
        variance=1.0,
        dot_buckets=2,
    )
    torch.manual_seed(0)
    prior = AutoregressivePrior(config)
    which = torch.arange(4000) % 2
    centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    images = centres[which] + torch.randn(4000, 2, generator=generator) * torch.tensor([0.4, 0.3])
    embedding = torch.eye(2)[which]
    text = TextFeatures(embedding, embedding[:, None], torch.ones(4000, 1).bool(), torch.zeros(4000).bool())
    prior.fit(images, embedding)
    index = prior.buckets.index(prior.numbers(images, embedding))
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for step in range(120):
        rows = torch.arange(step * 200, step * 200 + 200) % 3000
        optimizer.zero_grad()
        (-prior.log_probabilities(index[rows], text[rows]).mean()).backward()
        optimizer.step()
    gaussian = torch.distributions.Normal(centres[which], torch.tensor([0.4, 0.3])).log_prob(images).sum(dim=1)
    held_out = slice(3000, 4000)
    mean = prior.log_likelihood(images[held_out], text[held_out]).mean()
    assert mean.item() == pytest.approx(gaussian[held_out].mean().item(), abs=0.25)
    unconditional = prior.log_likelihood(images[held_out], text[held_out].null()).mean()
    assert unconditional < mean - 0.4, "ln 2 nats are in the caption"


@pytest.mark.parametrize("within", [True, False])
def test_draws_have_the_density_that_the_likelihood_says(within):
    """With one component, an embedding tells its value: that along the direction over that along the mean."""
    prior = some_prior(variance=0.5, draw_within=within)
    drawn = prior.draw_embeddings(captions()[torch.zeros(1500, dtype=torch.long)], range(1500), ONE)
    mean, direction = prior.components.mean, prior.components.directions[:, 0]
    values = (drawn @ direction) / (drawn @ mean) * mean.square().sum()
    grid = torch.linspace(-4, 4, 2001)
    text = captions()[torch.zeros(len(grid), dtype=torch.long)]
    density = prior.log_likelihood(mean + grid[:, None] * direction, text).exp()
    expected = torch.trapezoid(density * grid, grid)
    deviation = torch.trapezoid(density * (grid - expected) ** 2, grid).sqrt()
    assert values.mean().item() == pytest.approx(expected.item(), abs=0.06)
    assert values.std().item() == pytest.approx(deviation.item(), rel=0.1)
    assert len(values.unique()) > 1000 if within else len(values.round(decimals=4).unique()) <= 12


@pytest.mark.parametrize(
    "settings",
    [
        ONE,
        PriorSettings(num_candidates=2, guidance=2.0),
        PriorSettings(num_candidates=1, temperature=0.5, top_share=0.3),
    ],
)
def test_a_row_depends_on_its_caption_and_seed_alone(prior, settings):
    text = captions(5).drop(torch.tensor([False, False, False, True, False]))
    together = prior.draw_embeddings(text, [7, 8, 9, 7, 5], settings)
    close(together.norm(dim=1), torch.ones(5))
    for row in range(5):
        close(prior.draw_embeddings(text[row : row + 1], [[7, 8, 9, 7, 5][row]], settings)[0], together[row])


def test_a_low_temperature_draws_the_likeliest_buckets(prior):
    prior.config = replace(prior.config, draw_within=False)
    text = captions()[torch.zeros(8, dtype=torch.long)]
    cold = prior.draw_embeddings(text, range(8), replace(ONE, temperature=0.01))
    warm = prior.draw_embeddings(text, range(8), ONE)
    assert cold.std(dim=0).max() < 1e-3 < warm.std(dim=0).max()


def test_the_top_share_draws_the_highest_dot_products(prior, monkeypatch):
    dots = []
    step = prior.network.step
    monkeypatch.setattr(
        prior.network, "step", lambda rank, number, past: (dots.append(rank), step(rank, number, past))[1]
    )
    text = captions()[torch.zeros(400, dtype=torch.long)]
    for share in (1.0, 0.5, 0.001):
        dots.clear()
        prior.draw_embeddings(text, range(400), replace(ONE, top_share=share))
        ranks = dots[0]
        if share == 1:
            every = ranks
        elif share == 0.5:
            assert (ranks >= every.median() - 1e-6).all()
        else:
            assert (ranks == every.max()).all()


def test_guidance_moves_logits_away_from_the_null(prior):
    """Scale 0 draws as for an empty caption."""
    text = captions()
    unguided = prior.draw_embeddings(text.null(), [1, 2, 3], ONE)
    close(prior.draw_embeddings(text, [1, 2, 3], replace(ONE, guidance=0.0)), unguided)
    assert not torch.allclose(prior.draw_embeddings(text, [1, 2, 3], replace(ONE, guidance=3.0)), unguided)


def test_buckets_are_drawn_by_their_probability():
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    u = (torch.arange(1000) + 0.5) / 1000
    drawn = draw_bucket(probabilities.log().expand(1000, -1), u)
    assert drawn.bincount(minlength=4).tolist() == [100, 0, 600, 300]
