"""The kinds of prior beside the diffusion transformer: MLP and one pass; and the decoder that reads text embeddings."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import close, differ, randomise
from test_autoregressive_prior import captions
from three_stages import decoder_stage, draw_of, kind_stage, make_inputs

from stages.one_pass_prior import caption_contrast
from unclip import UserError
from unclip.decoder.text_decoder import TextDecoder
from unclip.prior import PriorConfig
from unclip.prior.mlp_model import MLPConfig
from unclip.prior.mlp_prior import MLPPrior, MLPPriorConfig
from unclip.prior.one_pass_prior import OnePassPrior, OnePassPriorConfig
from unclip.registry import PARTS
from unclip.settings import DecoderSettings, PriorSettings, check_given

SIZES = {"embed_dim": 6, "text_width": 5, "context": 8}


def mlp() -> MLPPrior:
    return MLPPrior(MLPPriorConfig(MLPConfig(embed_dim=6, width=16, layers=2)))


def one_pass() -> OnePassPrior:
    return OnePassPrior(OnePassPriorConfig(PriorConfig(**SIZES, width=16, layers=2, heads=2)))


@pytest.fixture(params=[mlp, one_pass])
def prior(request):
    prior = randomise(request.param())
    text = F.normalize(torch.randn(50, 6), dim=-1)
    prior.network.regression.fit(text, text @ torch.randn(6, 6))
    return prior


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_row_depends_on_its_caption_and_seed_alone(prior, guidance):
    settings = PriorSettings(steps=4, num_candidates=3, guidance=guidance)
    text = captions(4).drop(torch.tensor([False, False, True, False]))
    together = prior.draw_embeddings(text, [7, 8, 9, 5], settings)
    close(together.norm(dim=1), torch.ones(4))
    for row in range(4):
        close(prior.draw_embeddings(text[row : row + 1], [[7, 8, 9, 5][row]], settings)[0], together[row])
    assert differ(prior.draw_embeddings(text, [1, 2, 3, 4], settings), together)


def test_an_empty_caption_tells_nothing(prior):
    settings = PriorSettings(steps=4, num_candidates=1)
    null = captions().null()
    other = replace(null, embedding=-null.embedding, tokens=null.tokens + 1)
    close(prior.draw_embeddings(other, [1, 2, 3], settings), prior.draw_embeddings(null, [1, 2, 3], settings))


def test_the_mlp_reads_text_time_and_noised_embedding_but_no_tokens():
    prior = randomise(mlp())
    text = captions()
    read = (text.tokens, text.mask, text.empty)
    x, time = torch.randn(3, 6), torch.tensor([3.0, 400.0, 900.0])
    output = prior.network(x, time, prior.network.prefix(text.embedding, *read))
    assert differ(prior.network(-x, time, prior.network.prefix(text.embedding, *read)), output)
    assert differ(prior.network(x, time + 90, prior.network.prefix(text.embedding, *read)), output)
    assert differ(prior.network(x, time, prior.network.prefix(-text.embedding, *read)), output)
    close(prior.network(x, time, prior.network.prefix(text.embedding, text.tokens + 1, *read[1:])), output)


def test_one_pass_trains_what_it_draws():
    prior = randomise(one_pass())
    text, noise = captions(), torch.randn(3, 6)
    called = []
    prior.network.register_forward_hook(lambda *_: called.append(1))
    prior.draw_embeddings(text, [1, 2, 3], PriorSettings(num_candidates=1))
    assert called == [1]
    close(prior.predict(noise, text), prior._predict_from(noise, prior._read(text)))


def test_equal_captions_are_not_contrasted_with_each_other():
    logits = torch.tensor([[2.0, 1.0, 2.0], [0.0, 1.0, 0.0], [3.0, 1.0, 3.0]])
    loss = caption_contrast(logits, torch.tensor([4, 9, 4]))
    e = torch.e
    shares = torch.tensor([2 * e**2 / (2 * e**2 + e), e / (e + 2), 2 * e**3 / (2 * e**3 + e)])
    close(loss, -shares.log())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("kind", [kind for kind in PARTS["prior"].kinds if kind != "diffusion"])
def test_every_kind_is_validated_with_the_same_figures_and_learns(kind, inputs):
    stage = kind_stage("prior", kind, inputs)
    figures = stage.evaluate(stage.model)
    assert figures == stage.evaluate(stage.model)
    assert {"loss", "cosine_sample", "cosine_redrawn", "cosine_ceiling"} <= set(figures)
    batch = stage.batch(draw_of(16))
    assert set(stage.figures(batch)) <= {"chance_loss"}
    loss = stage.objective(batch)
    for name, chance in stage.figures(batch).items():
        assert name == "chance_loss"
        assert loss.item() < chance * 1.5
    loss.backward()
    torch.optim.SGD(stage.model.parameters(), lr=0.05).step()
    assert stage.objective(batch) < loss


def test_a_decoder_that_reads_text_ignores_image_embeddings(inputs):
    stage = kind_stage("decoder", "text", inputs)
    decoder = randomise(stage.model)
    assert isinstance(decoder, TextDecoder)
    text = inputs.train.text_features(torch.tensor([0, 5, 900]))
    settings = DecoderSettings(steps=2, guidance=2.0)
    images = decoder.draw_images(text.embedding, text, [1, 2, 3], settings)
    close(decoder.draw_images(-text.embedding, text, [1, 2, 3], settings), images)
    other = replace(text, embedding=text.embedding.roll(1, dims=0))
    assert differ(decoder.draw_images(text.embedding, other, [1, 2, 3], settings), images)
    null = decoder.draw_images(text.embedding, text.null(), [1, 2, 3], settings)
    close(decoder.draw_images(text.embedding, other.null(), [1, 2, 3], settings), null)
    scaler = decoder.network.image_condition.scaler
    close(scaler.mean, inputs.train.text_embeddings.mean(dim=0))
    assert differ(decoder_stage(inputs).model.network.image_condition.scaler.mean[None], scaler.mean[None])


@pytest.mark.parametrize(("setting", "value"), [("temperature", 0.5), ("top_share", 0.5)])
def test_settings_that_a_kind_does_not_read_are_refused(setting, value):
    settings = PriorSettings(**{setting: value})
    settings.check_read_by(type("Reading", (), {"reads": (setting,)})(), "prior")
    PriorSettings(steps=3).check_read_by(mlp(), "prior")
    with pytest.raises(UserError, match=rf"prior_{setting} must be 1.0, as a prior of this kind does not read it, not"):
        settings.check_read_by(mlp(), "prior")


@pytest.mark.parametrize("setting", ["prior_steps", "prior_spacing"])
def test_steps_of_a_prior_that_takes_none_are_refused(setting):
    check_given([setting, "prior_guidance"], {"prior": mlp()})
    check_given(["prior_guidance"], {"prior": one_pass()})
    with pytest.raises(UserError, match=f"{setting} changes nothing, as a prior of this kind does not read it"):
        check_given([setting], {"prior": one_pass()})
