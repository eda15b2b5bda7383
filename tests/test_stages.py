"""The three stages in the one loop: what each gives it, and that a resumed training equals an uninterrupted one."""

from dataclasses import replace

import pytest
import torch
from conftest import made_up_data
from runs import CPU, assert_same_run, break_off, train
from stages.frozen import Frozen
from toy import SETTINGS

from data.captions import PLAIN_CAPTIONS
from stages.clip import AugmentConfig, CLIPStage, fitting_patch
from stages.decoder import DecoderRun, DecoderStage
from stages.embed import embed_dataset
from stages.prior import PriorStage, hide_tokens
from unclip.checkpoint import Manifest, read_manifest
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, Tokenizer, VisionConfig
from unclip.decoder import Decoder, DecoderConfig
from unclip.prior import Prior, PriorConfig


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> Frozen:
    """A small untrained CLIP, and made-up data as it sees them."""
    data = made_up_data(40, seed=0)
    plain = torch.tensor([data.captions.index(caption) for caption in PLAIN_CAPTIONS])
    validation = replace(made_up_data(20, seed=1), draw=lambda rows, _: plain[rows % 10])  # pairs share their captions
    tokenizer = Tokenizer.train(data.captions, 500)
    torch.manual_seed(0)
    text = TextConfig(tokenizer.vocab_size, tokenizer.end_id, width=16, layers=1, heads=2)
    clip = CLIP(CLIPConfig(16, VisionConfig(patch_size=14, width=16, layers=1, heads=2), text)).eval()
    cache = tmp_path_factory.mktemp("cache")
    embedded, embedded_validation = (
        embed_dataset(part, clip, "c" * 64, tokenizer, Preprocess(28, 1), CPU, flipped=True, cache=cache)
        for part in (data, validation)
    )
    return Frozen(clip.config, data, validation, embedded, embedded_validation, {"clip": "c" * 64})


def clip_stage(frozen: Frozen) -> CLIPStage:
    tokenizer = Tokenizer.train(frozen.data.captions, 500)
    torch.manual_seed(0)
    return CLIPStage(CLIP(frozen.clip), tokenizer, frozen.data, frozen.validation, AugmentConfig(), CPU)


def prior_stage(frozen: Frozen) -> PriorStage:
    torch.manual_seed(0)
    model = Prior(PriorConfig(16, 16, frozen.clip.text.context, width=16, layers=1, heads=2))
    model.scaler.fit(frozen.embedded.images)
    texts = frozen.embedded.text[frozen.data.draw(torch.arange(len(frozen.data)), False)]
    model.regression.fit(texts, model.scaler.scale(frozen.embedded.images))
    return PriorStage(model, frozen, 0.1, True, 10, CPU)


def decoder_stage(frozen: Frozen) -> DecoderStage:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(16, 16, width=8, multipliers=(1, 2), blocks=1, condition_width=32, head_dim=8))
    model.image_condition.scaler.fit(frozen.embedded.images)
    return DecoderStage(model, frozen, DecoderRun(evaluate_on=10, flip=True), CPU)


@pytest.mark.parametrize("make", [clip_stage, prior_stage, decoder_stage])
def test_every_stage_resumed_equals_uninterrupted(make, frozen, tmp_path):
    config = replace(SETTINGS, steps=6, evaluate_every=2, preview_every=6)
    described = Manifest(make(frozen).name)
    train(tmp_path / "whole", make(frozen), config, described)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", break_off(make(frozen), "loss", 4), config, described)
    train(tmp_path / "broken", make(frozen), config, described)
    assert_same_run(tmp_path / "whole", tmp_path / "broken", described.stage)
    assert read_manifest(tmp_path / "broken" / described.stage).complete


@pytest.mark.parametrize("make", [prior_stage, decoder_stage])
def test_frozen_clip_never_runs_inside_a_training_step(make, frozen, monkeypatch):
    stage = make(frozen)
    for name in ("encode_image", "encode_text", "forward"):
        monkeypatch.setattr(CLIP, name, lambda *_: pytest.fail("the frozen CLIP was run"))
    loss, _ = stage.loss(stage.model, torch.arange(8))
    loss.backward()
    assert loss.item() > 0


def test_clip_reports_its_loss_beside_chance(frozen):
    stage = clip_stage(frozen)
    torch.manual_seed(0)
    _, extra = stage.loss(stage.model, torch.arange(20))
    assert 0 < extra["chance_loss"] <= torch.tensor(20.0).log()
    assert extra["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-3)
    assert set(stage.evaluate(stage.model)) == {
        "accuracy", "logit_scale", *(f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)),
    }  # fmt: skip


def test_prior_is_chosen_by_its_loss_as_the_cosine_favours_collapse(frozen):
    """A prior that draws the mean of all images has a higher cosine than one that draws as varied as they are."""
    stage = prior_stage(frozen)
    assert stage.best_is == ("loss", "lowest")
    images = torch.nn.functional.normalize(torch.randn(500, 8) + 2, dim=-1)
    mean = torch.nn.functional.normalize(images.mean(dim=0), dim=-1)
    assert (images @ mean).mean() > (images * images.roll(1, 0)).sum(dim=1).mean()
    first, again = stage.evaluate(stage.model)["loss"], stage.evaluate(stage.model)["loss"]
    assert first == again > 0


def test_prior_reports_four_cosines_side_by_side(frozen):
    stage = prior_stage(frozen)
    figures = stage.evaluate(stage.model)
    cosines = {"cosine_sample", "cosine_text", "cosine_unrelated", "cosine_ceiling"}
    assert set(figures) == {"loss", *cosines, "embedding_std"}
    assert all(-1 <= figures[name] <= 1.0001 for name in cosines), figures


def test_prior_learns_from_captions_with_hidden_tokens_that_keep_their_first():
    torch.manual_seed(0)
    mask = torch.arange(9) < torch.randint(2, 10, (4000, 1))
    hidden = hide_tokens(mask)
    assert not (hidden & ~mask).any(), "padding came to light"
    assert hidden[:, 0].all()
    shares = hidden[mask[:, -1], 1:].float().mean(dim=1)  # of eight tokens: every number is equally likely
    counts = (shares * 8).round().long().bincount(minlength=9) / len(shares)
    torch.testing.assert_close(counts, torch.full((9,), 1 / 9), atol=0.05, rtol=0)


def test_hidden_tokens_do_not_reach_the_prior_and_none_are_hidden_in_evaluation(frozen, monkeypatch):
    stage, seen = prior_stage(frozen), []
    prefix = stage.model.prefix
    monkeypatch.setattr(stage.model, "prefix", lambda *a, **k: (seen.append(a[2]), prefix(*a, **k))[1])
    stage.loss(stage.model, torch.arange(20))
    stage.hide_tokens = False
    stage.loss(stage.model, torch.arange(20))
    stage.evaluate(stage.model)
    gaps = [bool((mask.int().diff(dim=1) > 0).any()) for mask in seen]  # a token that follows a hidden one
    assert gaps[0]
    assert not any(gaps[1:])


@pytest.mark.parametrize(
    ("wanted", "image_size", "fitting"), [(7, 28, 7), (7, 32, 8), (7, 64, 8), (4, 30, 5), (0, 28, 0)]
)
def test_patches_fit_the_images(wanted, image_size, fitting, capsys):
    assert fitting_patch(wanted, image_size) == fitting
    assert ("as" in capsys.readouterr().out) == (wanted != fitting)
