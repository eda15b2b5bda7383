"""The prior: kept text keys, guidance's null, and drawing embeddings."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from unclip.layers import timestep_embedding
from unclip.prior import Prior, PriorConfig, draw_embeddings
from unclip.prior.model import Prefix, TextRegression
from unclip.samplers import PRIOR_STREAM, RowNoise
from unclip.settings import Sampling

CONFIG = PriorConfig(embed_dim=6, text_width=5, context=8, width=16, layers=2, heads=2, timesteps=50)
LENGTHS = [4, 2, 6]  # of the three captions


@pytest.fixture
def prior() -> Prior:
    """Every parameter random, so that nothing that matters hides behind a zero."""
    torch.manual_seed(0)
    prior = Prior(CONFIG).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = F.normalize(torch.randn(50, 6) + torch.linspace(-1, 1, 6), dim=-1)
    prior.scaler.fit(images)
    text = F.normalize(images @ torch.randn(6, 6) + 0.1 * torch.randn(50, 6), dim=-1)
    prior.regression.fit(text, prior.scaler.scale(images))
    return prior


def captions(length: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text embeddings, token encodings, and mask of three captions of unequal length."""
    generator = torch.Generator().manual_seed(1)
    text = F.normalize(torch.randn(3, 6, generator=generator), dim=-1)
    encodings = torch.randn(3, length, 5, generator=generator)
    return text, encodings, torch.arange(length) < torch.tensor(LENGTHS)[:, None]


def noised() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 17, 49])


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def one_causal_pass(prior: Prior, x, t, text, encodings, mask) -> torch.Tensor:
    """Ramesh et al. 2022, section 2.2, as it is written: the whole sequence, caption by caption, without padding."""
    outputs = []
    centre = prior.regression(text)
    x = x - prior.diffusion().add_noise(centre, torch.zeros_like(centre), t)
    for i in range(len(x)):
        words = encodings[i, mask[i]]
        sequence = torch.cat([
            prior.encoding_in(words) + prior.positions[: len(words)],
            prior.text_in(text[i : i + 1] * 6**0.5),
            prior.time_in(timestep_embedding(t[i : i + 1], 16)),
            prior.image_in(x[i : i + 1]),
            prior.query[None],
        ])[None]  # fmt: skip
        look = torch.ones(sequence.shape[1], sequence.shape[1]).tril().bool()
        for block in prior.blocks:
            sequence, _ = block(sequence, look)
        outputs.append(centre[i : i + 1] + prior.out(prior.norm_final(sequence[:, -1])))
    return torch.cat(outputs)


def test_kept_text_keys_give_what_one_causal_pass_gives(prior):
    x, t = noised()
    close(prior(x, t, prior.prefix(*captions())), one_causal_pass(prior, x, t, *captions()))


def test_the_text_is_read_the_same_at_every_time(prior):
    x, _ = noised()
    prefix = prior.prefix(*captions())
    for t in (torch.tensor([49, 49, 49]), torch.tensor([0, 0, 0])):
        close(prior(x, t, prefix), one_causal_pass(prior, x, t, *captions()))


def test_the_output_does_not_depend_on_padding(prior):
    (x, t), (text, encodings, mask) = noised(), captions()
    before = prior(x, t, prior.prefix(text, encodings, mask))
    filled = torch.where(mask[..., None], encodings, 100.0)
    close(prior(x, t, prior.prefix(text, filled, mask)), before)
    longer, longer_mask = F.pad(encodings, (0, 0, 0, 2), value=7.0), F.pad(mask, (0, 2), value=False)
    close(prior(x, t, prior.prefix(text, longer, longer_mask)), before)


def test_a_dropped_text_tells_nothing_not_even_its_length(prior):
    (x, t), (text, encodings, mask) = noised(), captions()
    drop = torch.ones(3, dtype=torch.bool)
    before = prior(x, t, prior.prefix(text, encodings, mask, drop))
    other = prior.prefix(text.flip(0), encodings.flip(0) + 1, mask.flip(0), drop)
    close(prior(x, t, other), before)
    close(prior(x, t, prior.prefix(text, encodings[:, :1], mask[:, :1], drop)), before)


def test_only_the_dropped_rows_lose_their_text(prior):
    (x, t), (text, encodings, mask) = noised(), captions()
    kept, gone = (prior.prefix(text, encodings, mask, torch.full((3,), drop)) for drop in (False, True))
    close(prior(x, t, prior.prefix(text, encodings, mask)), prior(x, t, kept))
    mixed = prior(x, t, prior.prefix(text, encodings, mask, torch.tensor([False, True, False])))
    want = prior(x, t, kept)
    assert not torch.allclose(want[1], prior(x, t, gone)[1], atol=1e-3)
    want[1] = prior(x, t, gone)[1]
    close(mixed, want)


@pytest.mark.parametrize("what", ["text", "encodings", "order", "t", "noised"])
def test_everything_it_is_told_has_an_effect(prior, what):
    (x, t), (text, encodings, mask) = noised(), captions()
    before = prior(x, t, prior.prefix(text, encodings, mask))
    if what == "text":
        text = text.flip(1)
    elif what == "encodings":
        encodings = encodings.roll(1, dims=2)
    elif what == "order":
        encodings = torch.cat([encodings[:, [1, 0]], encodings[:, 2:]], dim=1)
    elif what == "t":
        t = 49 - t
    else:
        x = -x
    after = prior(x, t, prior.prefix(text, encodings, mask))
    assert (after - before).abs().amax(dim=1).min() > 1e-3


def test_a_batch_equals_its_singles(prior):
    (x, t), (text, encodings, mask) = noised(), captions()
    together = prior(x, t, prior.prefix(text, encodings, mask))
    for i in range(3):
        n = LENGTHS[i]
        alone = prior.prefix(text[i : i + 1], encodings[i : i + 1, :n], mask[i : i + 1, :n])
        close(prior(x[i : i + 1], t[i : i + 1], alone)[0], together[i])


def test_prefixes_are_repeated_and_joined_row_by_row(prior):
    (x, t), prefix = noised(), prior.prefix(*captions())
    rows = torch.tensor([2, 0, 0])
    text, encodings, mask = captions()
    close(prior(x, t, prefix.repeat(rows)), prior(x, t, prior.prefix(text[rows], encodings[rows], mask[rows])))
    other = prior.prefix(*captions(), torch.ones(3, dtype=torch.bool))
    both = prior(torch.cat([x, x]), torch.cat([t, t]), prefix.join(other))
    close(both, torch.cat([prior(x, t, prefix), prior(x, t, other)]))


def test_regression_is_that_of_the_normal_equations():
    torch.manual_seed(0)
    text, images = torch.randn(200, 6, dtype=torch.float64), torch.randn(200, 6, dtype=torch.float64)
    regression = TextRegression(6)
    regression.fit(text, images, ridge=0.3)
    x, y = text - text.mean(dim=0), images - images.mean(dim=0)
    rows = torch.cat([x, (200 * 0.3 / 6) ** 0.5 * torch.eye(6, dtype=torch.float64)])  # ridge as six more rows
    weight = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(6, 6, dtype=torch.float64)])).solution
    close(regression(text.float()), (x @ weight + images.mean(dim=0)).float())


def test_regression_composes_what_was_never_seen_together():
    """Where a word moves all embeddings alike, the guess for an unseen pair is right, though no row shows it."""
    directions = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    pairs = [(a, b) for a in range(3) for b in range(3, 6)]
    text = torch.stack([directions[a] + directions[b] for a, b in pairs])
    images = text @ torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    regression = TextRegression(8)
    regression.fit(text[1:], images[1:], ridge=1e-6)
    torch.testing.assert_close(regression(text[:1]), images[:1], rtol=0.02, atol=0.02)


def test_an_untrained_prior_draws_the_linear_guess(prior):
    torch.nn.init.zeros_(prior.out.weight)
    torch.nn.init.zeros_(prior.out.bias)
    drawn = draw_embeddings(prior, *captions(), torch.arange(3), [0, 1, 2], Sampling(prior_steps=3, prior_guidance=1.0))
    close(drawn, prior.scaler.unscale(prior.regression(captions()[0])))


def test_an_untrained_prior_predicts_zero_the_mean_embedding():
    torch.manual_seed(0)
    prior = Prior(CONFIG)
    x, t = noised()
    assert not prior(x, t, prior.prefix(*captions())).any()
    mean = F.normalize(torch.tensor([1.0, 2, 3, -1, -2, 0.5]), dim=0)
    prior.scaler.mean.copy_(0.5 * mean)
    drawn = draw_embeddings(prior, *captions(), torch.arange(3), [0, 1, 2], Sampling(prior_steps=3))
    close(drawn, mean.expand(3, -1))


def test_gradient_reaches_every_parameter(prior):
    (x, t), drop = noised(), torch.tensor([False, True, False])
    text, encodings, mask = captions(8)  # as long as the context, so that every position is used
    mask[0] = True
    prior(x, t, prior.prefix(text, encodings, mask, drop)).square().sum().backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_predicts_x0_with_the_steps_of_its_config(prior):
    d = prior.diffusion()
    assert (d.prediction, d.timesteps, d.schedule) == ("x0", 50, "cosine")


# Drawing embeddings.

ROWS, SEEDS = torch.tensor([0, 1, 2, 1, 0]), [7, 8, 9, 10, 11]
SAMPLING = Sampling(prior_steps=4, draws=2)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_a_batch_of_draws_equals_its_singles(prior, guidance):
    sampling = replace(SAMPLING, prior_guidance=guidance)
    text, encodings, mask = captions()
    together = draw_embeddings(prior, text, encodings, mask, ROWS, SEEDS, sampling)
    assert together.shape == (5, 6)
    close(together.norm(dim=-1), torch.ones(5))
    close(draw_embeddings(prior, text, encodings, mask, ROWS, SEEDS, replace(sampling, batch_size=2)), together)
    for i, row in enumerate(ROWS.tolist()):
        only, n = slice(row, row + 1), LENGTHS[row]
        alone = (text[only], encodings[only, :n], mask[only, :n], torch.tensor([0]), SEEDS[i : i + 1])
        close(draw_embeddings(prior, *alone, sampling)[0], together[i])


def test_seeds_make_the_difference(prior):
    drawn = draw_embeddings(prior, *captions(), torch.zeros(3, dtype=torch.long), [1, 2, 1], SAMPLING)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)


def test_more_draws_are_never_less_similar_to_the_text(prior):
    text, encodings, mask = captions()
    rows = torch.arange(3).repeat_interleave(20)
    cosines = []
    for draws in (1, 2, 4):
        drawn = draw_embeddings(prior, text, encodings, mask, rows, range(60), replace(SAMPLING, draws=draws))
        cosines.append((drawn * text[rows]).sum(dim=1))
    for fewer, more in pairwise(cosines):
        assert (more >= fewer - 1e-5).all()
        assert (more > fewer + 1e-4).any()


def test_a_caption_that_stands_for_none_keeps_its_first_candidate(prior):
    """Its text embedding means nothing, so that nothing may be chosen by it."""
    (text, encodings, mask), drop = captions(), torch.tensor([True, False, False])
    args = (prior, text, encodings, mask, torch.zeros(20, dtype=torch.long), range(20))
    many = draw_embeddings(*args, replace(SAMPLING, draws=4), drop)
    close(many, draw_embeddings(*args, replace(SAMPLING, draws=1), drop))
    other = draw_embeddings(prior, text.flip(0), encodings.flip(0), mask.flip(0), *args[4:], SAMPLING, drop)
    close(other, many)


def test_guidance_moves_away_from_the_null(prior):
    """One step lands on the predicted x0, where guidance is plain arithmetic."""
    x, t = RowNoise([0, 1, 2], PRIOR_STREAM, 0)(torch.empty(3, 6)), torch.full((3,), 49)
    text = prior(x, t, prior.prefix(*captions()))
    null = prior(x, t, prior.prefix(*captions(), torch.ones(3, dtype=torch.bool)))
    for scale in (0.0, 1.0, 2.5):
        sampling = Sampling(prior_steps=1, draws=1, prior_guidance=scale)
        drawn = draw_embeddings(prior, *captions(), torch.arange(3), [0, 1, 2], sampling)
        close(drawn, prior.scaler.unscale(null + scale * (text - null)))


@pytest.mark.parametrize(("guidance", "reads"), [(1.0, 1), (2.0, 2)])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_text_is_read_once_a_call_whatever_the_steps(prior, monkeypatch, guidance, reads, steps):
    calls = {"prefix": 0, "forward": 0}
    prefix, forward = Prior.prefix, Prior.forward

    def counted_prefix(self, *args) -> Prefix:
        calls["prefix"] += 1
        return prefix(self, *args)

    def counted_forward(self, *args, **kwargs):
        calls["forward"] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Prior, "prefix", counted_prefix)
    monkeypatch.setattr(Prior, "forward", counted_forward)
    sampling = Sampling(prior_steps=steps, draws=2, prior_guidance=guidance, batch_size=2)
    draw_embeddings(prior, *captions(), ROWS, SEEDS, sampling)
    assert calls == {"prefix": reads, "forward": 3 * 2 * steps}  # three batches, two draws
