"""The prior: kept text keys, guidance's null, and drawing embeddings."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from unclip.clip import TextFeatures
from unclip.diffusion import ProcessConfig, RowNoise, VariancePreserving
from unclip.diffusion.noise import PRIOR_STREAM
from unclip.diffusion.prediction import x0_from_output
from unclip.diffusion.spacing import SPACINGS
from unclip.errors import UserError
from unclip.layers import timestep_embedding
from unclip.prior import DiffusionPrior, DiffusionPriorConfig, PriorConfig, PriorTransformer, Reranker
from unclip.prior.model import TextRegression
from unclip.settings import PriorSettings

CONFIG = DiffusionPriorConfig(
    PriorConfig(embed_dim=6, text_width=5, context=8, width=16, layers=2, heads=2),
    ProcessConfig(prediction="x0", timesteps=50),
)
LENGTHS = [4, 2, 6]  # of the three captions


@pytest.fixture(params=[None, 0.5], ids=["coordinates", "components"])
def prior(request) -> DiffusionPrior:
    """Every parameter random, so that nothing that matters hides behind a zero."""
    torch.manual_seed(0)
    prior = DiffusionPrior(CONFIG).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = F.normalize(torch.randn(50, 6) + torch.linspace(-1, 1, 6), dim=-1)
    if request.param is None:
        prior.scaler.fit(images)
    else:
        prior.scaler.fit_components(images, request.param)
    text = F.normalize(images @ torch.randn(6, 6) + 0.1 * torch.randn(50, 6), dim=-1)
    prior.network.regression.fit(text, prior.scaler.scale(images))
    return prior


@pytest.fixture
def network(prior) -> PriorTransformer:
    return prior.network


def captions(length: int = 6) -> TextFeatures:
    """Three captions of unequal length."""
    generator = torch.Generator().manual_seed(1)
    text = F.normalize(torch.randn(3, 6, generator=generator), dim=-1)
    encodings = torch.randn(3, length, 5, generator=generator)
    mask = torch.arange(length) < torch.tensor(LENGTHS)[:, None]
    return TextFeatures(text, encodings, mask, torch.zeros(3, dtype=torch.bool))


def alone(row: int) -> TextFeatures:
    """One of them, without padding."""
    one, n = captions()[row : row + 1], LENGTHS[row]
    return replace(one, tokens=one.tokens[:, :n], mask=one.mask[:, :n])


def noised() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 17, 49])


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def predict(prior: DiffusionPrior, x, t, text: TextFeatures) -> torch.Tensor:
    """Clean scaled embeddings (N, D) for N captions, of embeddings that are noised at steps t (N,) of the table."""
    prefix = prior.prefix(text)
    alpha = prior.process.alpha_sigma((t + 1) / 50)[0].float()[:, None]
    return prefix.centre + prior.network(x - alpha * prefix.centre, t, prefix)


def one_causal_pass(prior: DiffusionPrior, x, t, text: TextFeatures) -> torch.Tensor:
    """Ramesh et al. 2022, section 2.2, as it is written: the whole sequence, caption by caption, without padding."""
    outputs = []
    network = prior.network
    centre = network.regression(text.embedding)
    x = x - prior.process.alpha_sigma((t + 1) / 50)[0].float()[:, None] * centre
    for i in range(len(x)):
        words = text.tokens[i, text.mask[i]]
        sequence = torch.cat([
            network.encoding_in(words) + network.positions[: len(words)],
            network.text_in(text.embedding[i : i + 1] * 6**0.5),
            network.time_in(timestep_embedding(t[i : i + 1], 16)),
            network.image_in(x[i : i + 1]),
            network.query[None],
        ])[None]  # fmt: skip
        mask = torch.ones(sequence.shape[1], sequence.shape[1]).tril().bool()
        for block in network.blocks:
            sequence, _ = block(sequence, mask)
        outputs.append(centre[i : i + 1] + network.out(network.norm_final(sequence[:, -1])))
    return torch.cat(outputs)


def test_kept_text_keys_give_what_one_causal_pass_gives(prior):
    x, t = noised()
    close(predict(prior, x, t, captions()), one_causal_pass(prior, x, t, captions()))


def test_the_pass_that_training_takes_gives_the_same_with_the_same_gradients(network):
    """Padding and an empty caption included."""
    (x, t), some = noised(), captions().drop(torch.tensor([False, True, False]))
    assert not some.mask.all()
    text = (some.embedding, some.tokens, some.mask, some.empty)
    outputs = network.forward_with_text(x, t, *text), network(x, t, network.prefix(*text))
    close(*outputs)
    gradients = [torch.autograd.grad(output.square().sum(), list(network.parameters())) for output in outputs]
    for one, other in zip(*gradients, strict=True):
        close(one, other)


def test_the_text_is_read_the_same_at_every_time(prior):
    x, _ = noised()
    for t in (torch.tensor([49, 49, 49]), torch.tensor([0, 0, 0])):
        close(predict(prior, x, t, captions()), one_causal_pass(prior, x, t, captions()))


def test_the_model_that_samplers_are_given_predicts_the_clean_embedding(prior):
    x, _ = noised()
    model = prior.model(prior.prefix(captions()))
    for step in (0, 17, 49):
        close(model(x, prior.process.level((step + 1) / 50)), predict(prior, x, torch.full((3,), step), captions()))


def test_the_output_does_not_depend_on_padding(prior):
    (x, t), some = noised(), captions()
    before = predict(prior, x, t, some)
    filled = replace(some, tokens=torch.where(some.mask[..., None], some.tokens, 100.0))
    close(predict(prior, x, t, filled), before)
    encodings, mask = F.pad(some.tokens, (0, 0, 0, 2), value=7.0), F.pad(some.mask, (0, 2), value=False)
    close(predict(prior, x, t, replace(some, tokens=encodings, mask=mask)), before)


def test_an_empty_caption_tells_nothing_not_even_its_length(prior):
    (x, t), null = noised(), captions().null()
    before = predict(prior, x, t, null)
    close(predict(prior, x, t, null[torch.tensor([2, 0, 1])]), before)
    other = replace(null, embedding=-null.embedding, tokens=null.tokens + 1, mask=~null.mask)
    close(predict(prior, x, t, other), before)
    short = replace(null, tokens=null.tokens[:, :1], mask=null.mask[:, :1])
    close(predict(prior, x, t, short), before)


def test_an_empty_caption_is_the_learned_null_and_the_mean_of_all_images(prior):
    """One causal pass over the null's encoding and text embedding, about a linear guess of zero."""
    x, t = noised()
    null = TextFeatures(
        embedding=prior.network.null_text.expand(3, -1) / 6**0.5,
        tokens=prior.network.null_encoding.expand(3, 1, -1),
        mask=torch.ones(3, 1, dtype=torch.bool),
        empty=torch.zeros(3, dtype=torch.bool),
    )
    got = predict(prior, x, t, captions().null())
    torch.nn.init.zeros_(prior.network.regression.weight)
    torch.nn.init.zeros_(prior.network.regression.bias)
    close(got, one_causal_pass(prior, x, t, null))


def test_only_the_dropped_rows_lose_their_text(prior):
    (x, t), some = noised(), captions()
    kept, gone = predict(prior, x, t, some), predict(prior, x, t, some.null())
    mixed = predict(prior, x, t, some.drop(torch.tensor([False, True, False])))
    assert not torch.allclose(kept[1], gone[1], atol=1e-3)
    close(mixed, torch.stack([kept[0], gone[1], kept[2]]))


@pytest.mark.parametrize("what", ["text", "encodings", "order", "t", "noised"])
def test_everything_it_is_told_has_an_effect(prior, what):
    (x, t), some = noised(), captions()
    before = predict(prior, x, t, some)
    if what == "text":
        some = replace(some, embedding=some.embedding.flip(1))
    elif what == "encodings":
        some = replace(some, tokens=some.tokens.roll(1, dims=2))
    elif what == "order":
        some = replace(some, tokens=torch.cat([some.tokens[:, [1, 0]], some.tokens[:, 2:]], dim=1))
    elif what == "t":
        t = 49 - t
    else:
        x = -x
    after = predict(prior, x, t, some)
    assert (after - before).abs().amax(dim=1).min() > 1e-3


def test_a_batch_equals_its_singles(prior):
    x, t = noised()
    together = predict(prior, x, t, captions())
    for i in range(3):
        close(predict(prior, x[i : i + 1], t[i : i + 1], alone(i))[0], together[i])


def test_captions_may_be_repeated_and_joined_row_by_row(prior):
    (x, t), some = noised(), captions()
    both = TextFeatures.cat([some, some.null()])
    want = torch.cat([predict(prior, x, t, some), predict(prior, x, t, some.null())])
    close(predict(prior, torch.cat([x, x]), torch.cat([t, t]), both), want)


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


def test_an_untrained_prior_draws_the_linear_prediction(prior):
    torch.nn.init.zeros_(prior.network.out.weight)
    torch.nn.init.zeros_(prior.network.out.bias)
    drawn = prior.draw_embeddings(captions(), [0, 1, 2], PriorSettings(steps=3, guidance=1.0))
    close(drawn, prior.scaler.unscale(prior.network.regression(captions().embedding)))


def test_an_untrained_prior_predicts_zero_the_mean_embedding():
    torch.manual_seed(0)
    prior = DiffusionPrior(CONFIG)
    x, t = noised()
    assert not predict(prior, x, t, captions()).any()
    mean = F.normalize(torch.tensor([1.0, 2, 3, -1, -2, 0.5]), dim=0)
    prior.scaler.mean.copy_(0.5 * mean)
    drawn = prior.draw_embeddings(captions(), [0, 1, 2], PriorSettings(steps=3))
    close(drawn, mean.expand(3, -1))


def test_gradient_reaches_every_parameter(prior):
    (x, t), some = noised(), captions(8)  # as long as the context, so that every position is used
    some.mask[0] = True
    predict(prior, x, t, some.drop(torch.tensor([False, True, False]))).square().sum().backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_predicts_x0_with_the_steps_of_its_config(prior):
    assert DiffusionPriorConfig().diffusion.prediction == "x0"
    cosine = VariancePreserving(50, "cosine")
    for t in (0.02, 0.5, 1.0):
        assert prior.process.level(t) == cosine.level(t)


@pytest.mark.parametrize("diffusion", [ProcessConfig(prediction="v"), ProcessConfig("straight", prediction="velocity")])
def test_other_predictions_and_paths_are_converted_to_the_clean_embedding(prior, diffusion):
    other = DiffusionPrior(replace(CONFIG, diffusion=diffusion)).eval()
    other.load_state_dict(prior.state_dict())
    x, _ = noised()
    prefix = other.prefix(captions())
    level = other.process.level(0.4)
    residual = x - level.alpha * prefix.centre
    output = other.network(residual, torch.full((3,), other.process.network_time(0.4)), prefix)
    x0 = x0_from_output(diffusion.prediction, output, residual, level.alpha, level.sigma)
    close(other.model(prefix)(x, level), prefix.centre + x0)
    close(other.draw_embeddings(captions(), [0, 1, 2], FEW).norm(dim=1), torch.ones(3))


# Drawing embeddings.

ROWS, SEEDS = torch.tensor([0, 1, 2, 1, 0]), [7, 8, 9, 10, 11]
FEW = PriorSettings(steps=4, num_candidates=2)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_a_batch_of_draws_equals_its_singles(prior, guidance):
    settings = replace(FEW, guidance=guidance)
    together = prior.draw_embeddings(captions()[ROWS], SEEDS, settings)
    assert together.shape == (5, 6)
    close(together.norm(dim=-1), torch.ones(5))
    for i, row in enumerate(ROWS.tolist()):
        close(prior.draw_embeddings(alone(row), SEEDS[i : i + 1], settings)[0], together[i])


def test_seeds_make_the_difference(prior):
    drawn = prior.draw_embeddings(captions()[torch.zeros(3, dtype=torch.long)], [1, 2, 1], FEW)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)


def test_without_classes_more_candidates_are_never_less_similar_to_the_text(prior):
    repeated, cosines = captions()[torch.arange(3).repeat_interleave(20)], []
    for num_candidates in (1, 2, 4):
        drawn = prior.draw_embeddings(repeated, range(60), replace(FEW, num_candidates=num_candidates))
        cosines.append((drawn * repeated.embedding).sum(dim=1))
    for fewer, more in pairwise(cosines):
        assert (more >= fewer - 1e-5).all()
        assert (more > fewer + 1e-4).any()


def test_a_caption_that_stands_for_none_keeps_its_first_candidate(prior):
    """Its text embedding means nothing, so that nothing may be chosen by it."""
    empty = captions().null()[torch.zeros(20, dtype=torch.long)]
    many = prior.draw_embeddings(empty, range(20), replace(FEW, num_candidates=4))
    close(many, prior.draw_embeddings(empty, range(20), replace(FEW, num_candidates=1)))
    close(prior.draw_embeddings(replace(empty, embedding=-empty.embedding), range(20), FEW), many)
    prior.reranker = Reranker(6, 3)
    prior.reranker.fit(F.normalize(torch.randn(3, 6), dim=-1), 10.0)
    close(prior.draw_embeddings(empty, range(20), replace(FEW, num_candidates=4)), many)


def test_guidance_moves_away_from_the_null(prior):
    """One step lands on the predicted x0, where guidance is plain arithmetic."""
    x, t = RowNoise([0, 1, 2], PRIOR_STREAM, 0)(torch.empty(3, 6)), torch.full((3,), 49)
    text, null = (predict(prior, x, t, some) for some in (captions(), captions().null()))
    for scale in (0.0, 1.0, 2.5):
        drawn = prior.draw_embeddings(captions(), [0, 1, 2], PriorSettings(steps=1, num_candidates=1, guidance=scale))
        close(drawn, prior.scaler.unscale(null + scale * (text - null)))


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 5), (2.0, 10)])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_text_is_read_once_per_call_whatever_the_steps(prior, monkeypatch, guidance, rows, steps):
    read, called, prefix = [], [], prior.network.prefix
    monkeypatch.setattr(prior.network, "prefix", lambda *text: read.append(len(text[0])) or prefix(*text))
    prior.network.register_forward_hook(lambda *_: called.append(1))
    prior.draw_embeddings(captions()[ROWS], SEEDS, PriorSettings(steps=steps, num_candidates=2, guidance=guidance))
    assert read == [rows]
    assert len(called) == steps  # both candidates at once


@pytest.mark.parametrize("spacing", SPACINGS)
def test_steps_are_spaced_as_the_settings_say(prior, spacing):
    times = []
    prior.network.register_forward_hook(lambda _, inputs, __: times.append(inputs[1][0].item()))
    prior.draw_embeddings(captions(), [0, 1, 2], replace(FEW, spacing=spacing))
    levels = SPACINGS[spacing](prior.process, 4)[:-1]
    assert times == pytest.approx([prior.process.network_time(level.t) for level in levels])


def test_more_steps_than_times_are_refused(prior):
    with pytest.raises(UserError, match="prior_steps must be between 1 and 50, not 51"):
        prior.draw_embeddings(captions(), [0, 1, 2], PriorSettings(steps=51))
