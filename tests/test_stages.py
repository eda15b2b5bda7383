"""The three stages in the one loop: what each gives it, and that a resumed training equals an uninterrupted one."""

import re
from dataclasses import asdict, replace

import pytest
import torch
from conftest import made_up_data
from runs import assert_same_run, break_off, train
from three_stages import clip_stage, decoder_stage, make_inputs, prior_stage, seeded
from torch import nn
from toy import SETTINGS

from data.dataset import ListedCaptions
from data.fashion_mnist_captions import PLAIN_CAPTIONS
from data.shuffling import batch_generator
from stages.clip import AugmentConfig, fitting_patch
from stages.decoder import DecoderObjective, DecoderRun
from stages.embed import EmbeddedImages
from stages.inputs import Inputs
from stages.prior import hide_tokens, pair_cosines, pair_figures
from stages.state import start_from
from unclip.clip import CLIP, TextFeatures
from unclip.errors import UserError
from unclip.fields import as_option, check
from unclip.prior import Prior
from unclip.settings import PriorSettings
from unclip.store.manifest import Manifest, read_manifest
from unclip.store.parts import save_part


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("make", [clip_stage, prior_stage, decoder_stage])
def test_every_stage_resumed_equals_uninterrupted(make, inputs, tmp_path):
    config = replace(SETTINGS, steps=6, evaluate_every=2, preview_every=6)
    described = Manifest(make(inputs).name)
    train(tmp_path / "whole", make(inputs), config, described)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", break_off(make(inputs), "batch", 4), config, described)
    train(tmp_path / "broken", make(inputs), config, described)
    assert_same_run(tmp_path / "whole", tmp_path / "broken", described.part)
    assert read_manifest(tmp_path / "broken" / described.part).complete


@pytest.mark.parametrize("theirs", [0, 3])
def test_a_fine_tuned_prior_tells_draws_apart_by_the_captions_of_its_own_data(theirs, inputs, tmp_path):
    own = prior_stage(inputs).model
    other = Prior(replace(own.config, rivals=theirs))
    nn.init.ones_(other.query)
    save_part(tmp_path / "prior", other, Manifest("prior", parents={"clip": inputs.clip_sha256}))
    assert start_from(own, tmp_path, "prior")["start"] == read_manifest(tmp_path / "prior").sha256
    assert torch.equal(own.query, other.query)
    assert torch.equal(own.choice.rivals, inputs.rivals)
    assert own.choice.scale.item() == pytest.approx(inputs.logit_scale)


@pytest.mark.parametrize("make", [prior_stage, decoder_stage])
def test_frozen_clip_never_runs_inside_a_training_step(make, inputs, monkeypatch):
    stage = make(inputs)
    for name in ("encode_image", "encode_text", "forward"):
        monkeypatch.setattr(CLIP, name, lambda *_: pytest.fail("the frozen CLIP was run"))
    loss = stage.objective(stage.batch(torch.arange(8), seeded()))
    loss.backward()
    assert loss.item() > 0


@pytest.mark.parametrize("make", [clip_stage, prior_stage, decoder_stage])
def test_batch_is_a_pure_function_of_rows_and_generator(make, inputs):
    stage, rows = make(inputs), torch.arange(12)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one, same, other = (stage.batch(rows, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state), "numbers of the global generator were used up"
    losses = [stage.objective(batch).item() for batch in (one, same, other)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("make", [prior_stage, decoder_stage])
def test_shares_of_a_batch_are_the_batch(make, inputs):
    """Every rank draws the whole batch and keeps its own rows: their mean loss is the loss of the whole."""
    stage = make(inputs)
    batch = stage.batch(torch.arange(12), seeded())
    shares = [batch.share(rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [4, 4, 4]
    mean = torch.stack([stage.objective(share) for share in shares]).mean()
    torch.testing.assert_close(mean, stage.objective(batch))


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_clips_batch_have_each_caption_once_and_say_whose_it_is(ranks, inputs):
    stage = clip_stage(inputs)
    batch = stage.batch(torch.arange(24), seeded())
    shares = [batch.share(rank, ranks) for rank in range(ranks)]
    images, ids = (torch.cat([getattr(share, name) for share in shares]) for name in ("images", "ids"))
    assert torch.equal(shares[1].images, batch.images[1::ranks])
    assert torch.equal(ids[: len(batch.ids)], batch.ids)
    assert len(ids) < len(batch.ids) + ranks
    for share in shares:
        assert torch.equal(share.caption, shares[0].caption)
        assert len(share.ids) == len(ids) / ranks
    of = {tuple(image.flatten().tolist()): row for image, row in zip(batch.images, batch.caption, strict=True)}
    assert [of[tuple(image.flatten().tolist())] for image in images] == shares[0].caption.tolist()


def test_clip_sees_a_share_of_the_patches_in_training_alone(inputs):
    stage, seen = clip_stage(inputs), []
    stage.augment = AugmentConfig(keep_patches=0.5)
    batch = stage.batch(torch.arange(8), batch_generator(0, 0))
    total = len(stage.model.vision.positions) - 1
    assert batch.patches.shape == (8, total // 2)
    assert all(len(set(row)) == total // 2 and max(row) < total for row in batch.patches.tolist())
    assert batch.patches.unique(dim=0).shape[0] > 1
    torch.testing.assert_close(batch.share(1, 2).patches, batch.patches[1::2])
    stage.model.vision.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    stage.objective(batch)
    with torch.inference_mode():
        stage.evaluate(stage.model)
    assert torch.equal(seen[0], batch.patches)
    assert seen[1:] == [None] * len(seen[1:]) != []


def test_the_decoder_sees_noisy_embeddings_in_training_alone(inputs):
    stage = decoder_stage(inputs)
    true = inputs.train.embeddings[:40]
    torch.testing.assert_close(stage.batch(torch.arange(40), batch_generator(0, 0)).embeddings, true)
    stage.run = replace(stage.run, embedding_noise=0.5)
    noisy = stage.batch(torch.arange(40), batch_generator(0, 0)).embeddings
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(40))
    scale = stage.model.image_condition.scaler.std.norm() * 0.5  # of noise on coordinates of unit variance
    assert (noisy - true).norm(dim=1).mean() == pytest.approx(scale.item(), rel=0.3)


def test_the_decoder_s_loss_can_weigh_noise_levels_as_min_snr(inputs):
    stage = decoder_stage(inputs)
    batch = stage.batch(torch.arange(16), batch_generator(0, 0))
    plain = DecoderObjective(stage.model)
    each = torch.stack([plain(batch[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(plain(batch), each.mean())
    weight = stage.diffusion.loss_weight(batch.t, 2.0)
    torch.testing.assert_close(DecoderObjective(stage.model, 2.0)(batch), (weight * each).mean())


@pytest.mark.parametrize("min_snr", [None, 2.0])
def test_decoder_reports_its_loss_beside_that_of_answering_zeros(min_snr, inputs):
    stage = decoder_stage(inputs)
    objective, batch = DecoderObjective(stage.model, min_snr), stage.batch(torch.arange(16), seeded())
    torch.testing.assert_close(objective(batch), objective.chance(batch))  # a new decoder answers zeros


@pytest.mark.parametrize("deviation", [0.0, -0.8])
def test_noise_levels_without_a_deviation_are_refused(deviation):
    with pytest.raises(UserError, match="--log-sigma must be a mean and a deviation above 0, not "):
        check(DecoderRun(log_sigma=(1.4, deviation)), spell=as_option)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
@pytest.mark.parametrize("clip", ["c" * 64, "d" * 64])
def test_fine_tuning_on_another_clip_takes_the_statistics_of_its_embeddings(stage, clip, inputs, tmp_path):
    make, scaler = {
        "prior": (prior_stage, lambda model: model.scaler),
        "decoder": (decoder_stage, lambda model: model.image_condition.scaler),
    }[stage]
    earlier, model = make(inputs).model, make(inputs).model
    scaler(earlier).mean.fill_(5.0)
    save_part(tmp_path / stage, earlier, Manifest(stage, model=asdict(earlier.config), parents={"clip": clip}))
    start = inputs.start(model, tmp_path, stage, lambda: scaler(model).fit(inputs.train.embeddings))
    assert start == {"start": read_manifest(tmp_path / stage).sha256}
    kept = scaler(earlier).mean if clip == inputs.clip_sha256 else inputs.train.embeddings.mean(dim=0)
    torch.testing.assert_close(scaler(model).mean, kept)


def test_clip_reports_its_loss_beside_chance(inputs):
    stage = clip_stage(inputs)
    figures = stage.figures(stage.batch(torch.arange(20), seeded()))
    assert 0 < figures["chance_loss"] <= torch.tensor(20.0).log()
    assert figures["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-3)
    assert set(stage.evaluate(stage.model)) == {
        "accuracy", "logit_scale", *(f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)),
    }  # fmt: skip


def test_prior_is_chosen_by_its_loss_as_the_cosine_favours_collapse(inputs):
    """A prior that draws the mean of all images has a higher cosine than one that draws as varied as they are."""
    stage = prior_stage(inputs)
    assert stage.best_is == ("loss", "lowest")
    images = torch.nn.functional.normalize(torch.randn(500, 8) + 2, dim=-1)
    mean = torch.nn.functional.normalize(images.mean(dim=0), dim=-1)
    assert (images @ mean).mean() > (images * images.roll(1, 0)).sum(dim=1).mean()
    first, again = stage.evaluate(stage.model)["loss"], stage.evaluate(stage.model)["loss"]
    assert first == again > 0


def test_prior_reports_cosines_and_distances_side_by_side(inputs):
    stage = prior_stage(inputs)
    figures = stage.evaluate(stage.model)
    cosines = {f"cosine_{name}" for name in ("sample", "redrawn", "text", "unrelated", "ceiling")}
    assert set(figures) - {"gap_closed"} == {"loss", *cosines, "embedding_std"}, (
        "to an untrained CLIP all images are nearly the same"
    )
    assert all(-1 <= figures[name] <= 1.0001 for name in cosines), figures


def test_prior_preview_shows_images_of_a_caption_beside_those_nearest_to_its_draws(inputs, monkeypatch):
    drawn = {}
    monkeypatch.setattr("stages.prior.captioned_grid", lambda rows, **others: drawn.update(others, rows=rows))
    stage, validation = prior_stage(inputs), inputs.validation.data
    stage.preview(stage.model)
    assert [caption for caption, _ in drawn["rows"]] == sorted(PLAIN_CAPTIONS, key=[c for c, _ in drawn["rows"]].index)
    for (caption, images), note in zip(drawn["rows"], drawn["notes"], strict=True):
        own = validation.images[validation.labels == PLAIN_CAPTIONS.index(caption)].permute(0, 2, 3, 1).numpy()
        assert (images[:2] == own).all()
        assert (images[2:5] == 255).all(), "each caption has two images here"
        everything = inputs.train.data.images.permute(0, 2, 3, 1).numpy()
        assert all((image == everything).all(axis=(1, 2, 3)).any() for image in images[5:])
        assert re.fullmatch(r"images \d\.\d\d, draws \d\.\d\d", note)
    assert len(drawn["columns"]) == 13


class Drawn(torch.nn.Module):
    """In place of a prior: draws each caption's text embedding, moved by some noise."""

    def __init__(self, noise: float):
        super().__init__()
        self.noise, self.weight = noise, torch.nn.Parameter(torch.zeros(1))

    def draw(self, captions: TextFeatures, seeds, settings) -> torch.Tensor:
        noise = [torch.randn(captions.text.shape[1], generator=seeded(seed)) for seed in seeds]
        return torch.nn.functional.normalize(captions.embedding + self.noise * torch.stack(noise), dim=-1)


def test_distance_tells_collapse_from_success_where_the_gap_does_not():
    """Of captions that say nearly all, there is next to no gap from the text embedding to the ceiling."""
    count, data = 600, made_up_data(600, seed=0)
    data.captioner = ListedCaptions(list(PLAIN_CAPTIONS), data.labels[:, None], torch.ones(count, dtype=torch.long))
    text = torch.nn.functional.normalize(torch.randn(10, 32, generator=seeded(1)), dim=-1)
    noise = 0.06 * torch.randn(count, 32, generator=seeded(2))
    embeddings = torch.nn.functional.normalize(text[data.labels] + noise, dim=-1)
    images = EmbeddedImages(data, embeddings, text, torch.zeros(10, 4), torch.arange(11))
    good, collapsed = (
        pair_figures(pair_cosines(Drawn(noise), images, count, PriorSettings())) for noise in (0.06, 0.0)
    )
    distance_text = 2 * (1 - good["cosine_text"]) / (1 - good["cosine_ceiling"])
    assert good["distance_text"] == pytest.approx(distance_text, rel=1e-4)
    assert good["distance_sample"] == pytest.approx(0, abs=0.1)
    assert collapsed["distance_sample"] == pytest.approx(1, abs=0.1)
    assert collapsed["cosine_sample"] > good["cosine_sample"], "by the cosine alone collapse is better"


def test_prior_learns_from_captions_with_hidden_tokens_that_keep_their_first():
    torch.manual_seed(0)
    mask = torch.arange(9) < torch.randint(2, 10, (4000, 1))
    captions = TextFeatures(torch.zeros(4000, 1), torch.zeros(4000, 9, 1), mask, torch.zeros(4000, dtype=torch.bool))
    hidden = hide_tokens(captions, seeded()).mask
    assert not (hidden & ~mask).any(), "padding came to light"
    assert hidden[:, 0].all()
    shares = hidden[mask[:, -1], 1:].float().mean(dim=1)  # of eight tokens: every number is equally likely
    counts = (shares * 8).round().long().bincount(minlength=9) / len(shares)
    torch.testing.assert_close(counts, torch.full((9,), 1 / 9), atol=0.05, rtol=0)


def test_hidden_tokens_do_not_reach_the_prior_and_none_are_hidden_in_evaluation(inputs, monkeypatch):
    def gaps(stage) -> list[bool]:
        """Whether a token follows a hidden one, in what the prior reads of a step and of a validation."""
        seen, text = [], stage.model._text
        monkeypatch.setattr(stage.model, "_text", lambda captions: (seen.append(captions.mask), text(captions))[1])
        stage.objective(stage.batch(torch.arange(20), seeded()))
        stage.evaluate(stage.model)
        return [bool((mask.int().diff(dim=1) > 0).any()) for mask in seen]

    hiding, plain = gaps(prior_stage(inputs)), gaps(prior_stage(inputs, hide_tokens=False))
    assert hiding[0]
    assert not any(hiding[1:] + plain)


@pytest.mark.parametrize(
    ("wanted", "image_size", "fitting"),
    [(7, 28, 7), (7, 32, 8), (7, 64, 8), (4, 30, 5), (0, 28, 0), (7, 37, 7), (7, 46, 7), (7, 8, 4), (7, 36, 6)],
)
def test_patches_fit_the_images(wanted, image_size, fitting, capsys):
    assert fitting_patch(wanted, image_size) == fitting
    assert ("as" in capsys.readouterr().out) == (wanted != fitting)
