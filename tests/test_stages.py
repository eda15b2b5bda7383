"""The three stages in the one loop: what each gives it, and that a resumed training equals an uninterrupted one."""

import math
import re
import warnings
from dataclasses import asdict, fields, replace
from functools import partial

import pytest
import torch
from conftest import made_up_data
from runs import assert_same_run, break_off
from three_stages import CLIP_MODEL, clip_stage, decoder_stage, draw_of, kind_stage, make_inputs, prior_stage, seeded
from torch import nn
from toy import SETTINGS, train

from data.dataset import ListedCaptions
from data.fashion_mnist_captions import PLAIN_CAPTIONS
from stages.clip import AugmentConfig, CLIPRun, CLIPStage, fitting_patch
from stages.decoder import DecoderObjective, DecoderRun
from stages.embed import EmbeddedImages
from stages.fast_decoder import FastDecoderRun
from stages.inputs import Inputs, check_captions_differ, check_images_differ
from stages.prior import PriorRun
from stages.prior_base import hide_tokens
from stages.prior_figures import pair_cosines, pair_figures
from stages.run_options import PartRun, Shapes
from stages.state import start_from
from stages.text_decoder import TextDecoderRun
from stages.train import start_from_pipeline
from stages.upsampler import UpsamplerRun
from unclip.clip import CLIP, Preprocess, TextFeatures, VisionConfig
from unclip.clip.vision import VisionTransformer
from unclip.diffusion.prediction import min_snr_weight
from unclip.errors import UserError
from unclip.fields import as_option, check
from unclip.prior import DiffusionPrior
from unclip.settings import DecoderSettings, PriorSettings
from unclip.store.manifest import Manifest, read_manifest
from unclip.store.parts import save_part
from unclip.tensor_batch import TensorBatch


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("make", [clip_stage, prior_stage, decoder_stage, lambda inputs: autoregressive_stage(inputs)])
def test_every_stage_resumed_equals_uninterrupted(make, inputs, tmp_path):
    config = replace(SETTINGS, steps=6, evaluate_every=2, preview_every=6)
    described = Manifest(make(inputs).name)
    train(tmp_path / "whole", make(inputs), config, described)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", break_off(make(inputs), "batch", 4), config, described)
    train(tmp_path / "broken", make(inputs), config, described)
    assert_same_run(tmp_path / "whole", tmp_path / "broken", described.part)
    assert read_manifest(tmp_path / "broken" / described.part).complete


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_fine_tuned_prior_reranks_by_the_captions_of_its_new_data(num_classes, inputs, tmp_path):
    model = prior_stage(inputs).model
    earlier = DiffusionPrior(replace(model.config, num_classes=num_classes))
    nn.init.ones_(earlier.network.query)
    save_part(tmp_path / "prior", earlier, Manifest("prior", parents={"clip": inputs.clip_sha256}))
    assert start_from(model, tmp_path, "prior")["start"] == read_manifest(tmp_path / "prior").sha256
    assert torch.equal(model.network.query, earlier.network.query)
    assert torch.equal(model.reranker.class_embeddings, inputs.class_embeddings)
    assert model.reranker.logit_scale.item() == pytest.approx(inputs.logit_scale)


def autoregressive_stage(inputs):
    """With weights at random where a new prior has zeros, to which all batches are alike."""
    stage = kind_stage("prior", "autoregressive", inputs)
    nn.init.normal_(stage.model.network.out.weight)
    return stage


one_pass_stage = partial(kind_stage, "prior", "one_pass")


@pytest.mark.parametrize("make", [prior_stage, decoder_stage, autoregressive_stage, one_pass_stage])
def test_frozen_clip_never_runs_inside_a_training_step(make, inputs, monkeypatch):
    stage = make(inputs)
    for name in ("encode_image", "encode_text", "forward"):
        monkeypatch.setattr(CLIP, name, lambda *_: pytest.fail("the frozen CLIP was run"))
    loss = stage.objective(stage.batch(draw_of(8)))
    loss.backward()
    assert loss.item() > 0


@pytest.mark.parametrize("make", [clip_stage, prior_stage, decoder_stage, autoregressive_stage, one_pass_stage])
def test_batch_is_a_pure_function_of_its_draw(make, inputs):
    stage = make(inputs)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    batch, same, other = (stage.batch(draw_of(12, seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state), "numbers of the global generator were used up"
    losses = [stage.objective(batch).item() for batch in (batch, same, other)]
    assert losses[0] == losses[1] != losses[2]


def same_rows(one, other) -> bool:
    """Whether two tensors, or batches of them, are equal to the bit, padding of captions aside."""
    if isinstance(one, TextFeatures):
        length = min(one.mask.shape[1], other.mask.shape[1])
        assert not any(x.mask[:, length:].any() for x in (one, other))
        parts = [(x.mask[:, :length], x.tokens[:, :length], x.embedding, x.empty) for x in (one, other)]
        return all(torch.equal(*pair) for pair in zip(*parts, strict=True))
    if isinstance(one, TensorBatch):
        return all(same_rows(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return torch.equal(one, other)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "make", [prior_stage, partial(decoder_stage, embedding_noise=0.2), autoregressive_stage, one_pass_stage]
)
def test_shares_of_all_ranks_are_the_batch_of_one_to_the_bit(make, ranks, inputs):
    stage = make(inputs)
    batch = stage.batch(draw_of(12))
    for rank in range(ranks):
        share = stage.batch(draw_of(12, rank=rank, ranks=ranks))
        assert len(share) == 12 // ranks
        assert same_rows(share, batch[torch.arange(rank, 12, ranks)])


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_clips_batch_have_each_caption_once_and_say_whose_it_is(ranks, inputs):
    stage = clip_stage(inputs, augment=AugmentConfig(keep_patches=0.5))
    batch = stage.batch(draw_of(24))
    shares = [stage.batch(draw_of(24, rank=rank, ranks=ranks)) for rank in range(ranks)]
    token_ids = torch.cat([share.token_ids for share in shares])
    assert torch.equal(token_ids[: len(batch.token_ids)], batch.token_ids)
    assert len(token_ids) < len(batch.token_ids) + ranks
    order = torch.cat([torch.arange(rank, 24, ranks) for rank in range(ranks)])
    assert torch.equal(torch.cat([share.images for share in shares]), batch.images[order])
    assert torch.equal(torch.cat([share.patches for share in shares]), batch.patches[order])
    for share in shares:
        assert torch.equal(share.caption_id, batch.caption_id[order])
        assert len(share.token_ids) == len(token_ids) / ranks


def test_clip_sees_a_share_of_the_patches_in_training_alone(inputs):
    stage, seen = clip_stage(inputs, augment=AugmentConfig(keep_patches=0.5)), []
    batch = stage.batch(draw_of(8))
    total = len(stage.model.vision.positions) - 1
    assert batch.patches.shape == (8, total // 2)
    assert all(len(set(row)) == total // 2 and max(row) < total for row in batch.patches.tolist())
    assert batch.patches.unique(dim=0).shape[0] > 1
    stage.model.vision.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    stage.objective(batch)
    with torch.inference_mode():
        stage.evaluate(stage.model)
    assert torch.equal(seen[0], batch.patches)
    assert seen[1:] == [None] * len(seen[1:]) != []


def test_the_decoder_sees_noisy_embeddings_in_training_alone(inputs):
    stage = decoder_stage(inputs)
    true = inputs.train.embeddings[:40]
    torch.testing.assert_close(stage.batch(draw_of(40)).embeddings, true)
    stage = decoder_stage(inputs, embedding_noise=0.5)
    noisy = stage.batch(draw_of(40)).embeddings
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(40))
    scale = stage.model.network.image_condition.scaler.std.norm() * 0.5  # of noise on coordinates of unit variance
    assert (noisy - true).norm(dim=1).mean() == pytest.approx(scale.item(), rel=0.3)


def test_the_decoder_s_loss_can_weigh_noise_levels_as_min_snr(inputs):
    stage = decoder_stage(inputs)
    batch = stage.batch(draw_of(16))
    plain = DecoderObjective(stage.model)
    each = torch.stack([plain(batch[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(plain(batch), each.mean())
    weight = min_snr_weight("v", batch.levels.alpha, batch.levels.sigma, 2.0)
    torch.testing.assert_close(DecoderObjective(stage.model, 2.0)(batch), (weight * each).mean())


@pytest.mark.parametrize("min_snr", [None, 2.0])
def test_decoder_reports_its_loss_beside_that_of_answering_zeros(min_snr, inputs):
    stage = decoder_stage(inputs)
    objective, batch = DecoderObjective(stage.model, min_snr), stage.batch(draw_of(16))
    torch.testing.assert_close(objective(batch), objective.chance(batch))  # a new decoder answers zeros


@pytest.mark.parametrize("deviation", [0.0, -0.8])
@pytest.mark.parametrize("run_class", [PriorRun, DecoderRun, FastDecoderRun, UpsamplerRun])
def test_noise_levels_without_a_deviation_are_refused(run_class, deviation):
    with pytest.raises(UserError, match="--log-sigma must be a mean and a deviation above 0, not "):
        check(run_class(log_sigma=(1.4, deviation)), spell=as_option)


@pytest.mark.parametrize("make", [prior_stage, decoder_stage])
def test_noise_levels_are_drawn_log_normal_about_their_mean(make, inputs):
    levels = make(inputs, log_sigma=(-3.0, 0.1)).batch(draw_of(16)).levels
    ratios = (levels.sigma / levels.alpha).log()
    assert ((ratios > -3.5) & (ratios < -2.5)).all()


@pytest.mark.parametrize("part", ["prior", "decoder"])
@pytest.mark.parametrize("clip", ["c" * 64, "d" * 64])
def test_fine_tuning_on_another_clip_takes_the_statistics_of_its_embeddings(part, clip, inputs, tmp_path):
    make, scaler = {
        "prior": (prior_stage, lambda model: model.scaler),
        "decoder": (decoder_stage, lambda model: model.network.image_condition.scaler),
    }[part]
    earlier, stage = make(inputs).model, make(inputs)
    scaler(earlier).mean.fill_(5.0)
    save_part(tmp_path / part, earlier, Manifest(part, model=asdict(earlier.config), parents={"clip": clip}))
    start = start_from_pipeline(part, PartRun(init_from=tmp_path), stage, inputs)
    assert start == {"start": read_manifest(tmp_path / part).sha256}
    mean = scaler(earlier).mean if clip == inputs.clip_sha256 else inputs.train.embeddings.mean(dim=0)
    torch.testing.assert_close(scaler(stage.model).mean, mean)


def test_clip_reports_its_loss_beside_chance(inputs):
    stage = clip_stage(inputs)
    figures = stage.figures(stage.batch(draw_of(20)))
    assert 0 < figures["chance_loss"] <= math.log(20)
    assert figures["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-3)
    assert set(stage.evaluate(stage.model)) == {
        "accuracy", "logit_scale", *(f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)),
    }  # fmt: skip


def test_pairs_of_the_prior_weigh_as_the_data_says_and_dropped_captions_alike(inputs, monkeypatch):
    data = inputs.train.data
    monkeypatch.setitem(vars(data), "pair_weights", torch.linspace(0.1, 1.9, len(data)))
    stage = prior_stage(inputs, drop=0.5)
    draw = draw_of(len(data))
    batch = stage.batch(draw)
    assert torch.equal(batch.weights, data.pair_weights.masked_fill(batch.text.empty, 1))
    assert 0 < batch.text.empty.sum() < len(data)
    alone = torch.stack([stage.objective(batch[i : i + 1]) for i in range(len(data))])
    torch.testing.assert_close(stage.objective(batch), alone.mean())
    unweighted = torch.stack(
        [stage.objective(replace(batch, weights=torch.ones(len(data)))[i : i + 1]) for i in (0, 1)]
    )
    torch.testing.assert_close(alone[:2], batch.weights[:2] * unweighted)


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
    monkeypatch.setattr("stages.prior_base.captioned_grid", lambda rows, **others: drawn.update(others, rows=rows))
    stage, validation = prior_stage(inputs), inputs.validation.data
    stage.preview(stage.model)
    assert [caption for caption, _ in drawn["rows"]] == sorted(PLAIN_CAPTIONS, key=[c for c, _ in drawn["rows"]].index)
    for (caption, images), note in zip(drawn["rows"], drawn["notes"], strict=True):
        own = validation.images[validation.labels == PLAIN_CAPTIONS.index(caption)].permute(0, 2, 3, 1).numpy()
        assert (images[:2] == own).all()
        assert (images[2:5] == 255).all(), "each caption has two images here"
        everything = inputs.train.data.images.permute(0, 2, 3, 1).numpy()
        assert all((image == everything).all(axis=(1, 2, 3)).any() for image in images[5:])
        assert re.fullmatch(r"images \d\.\d\d, samples \d\.\d\d", note)
    assert len(drawn["columns"]) == 13


class Drawn(torch.nn.Module):
    """In place of a prior: draws each caption's text embedding, moved by some noise."""

    def __init__(self, noise: float):
        super().__init__()
        self.noise, self.weight = noise, torch.nn.Parameter(torch.zeros(1))

    def draw_embeddings(self, captions: TextFeatures, seeds, settings) -> torch.Tensor:
        noise = [torch.randn(captions.embedding.shape[1], generator=seeded(seed)) for seed in seeds]
        return torch.nn.functional.normalize(captions.embedding + self.noise * torch.stack(noise), dim=-1)


def test_distance_tells_collapse_from_success_where_the_gap_does_not():
    """For captions that say nearly all, there is next to no gap from the text embedding to the ceiling."""
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
    hidden = hide_tokens(captions, torch.rand(4000, 1), torch.rand(4000, 12)).mask
    assert not (hidden & ~mask).any(), "padding came to light"
    assert hidden[:, 0].all()
    shares = hidden[mask[:, -1], 1:].float().mean(dim=1)  # of eight tokens: every number is equally likely
    counts = (shares * 8).round().long().bincount(minlength=9) / len(shares)
    torch.testing.assert_close(counts, torch.full((9,), 1 / 9), atol=0.05, rtol=0)


def test_hidden_tokens_do_not_reach_the_prior_and_none_are_hidden_in_evaluation(inputs, monkeypatch):
    def gaps(stage) -> list[bool]:
        """Whether a token follows a hidden one, in what the prior reads of a step and of a validation."""
        masks, network = [], stage.model.network
        for name, place in (("forward_with_text", 4), ("prefix", 2)):
            method = getattr(network, name)
            read = lambda *inputs, m=method, i=place: (masks.append(inputs[i]), m(*inputs))[1]  # noqa: E731
            monkeypatch.setattr(network, name, read)
        stage.objective(stage.batch(draw_of(20)))
        stage.evaluate(stage.model)
        return [bool((mask.int().diff(dim=1) > 0).any()) for mask in masks]

    hiding, plain = gaps(prior_stage(inputs)), gaps(prior_stage(inputs, hide_tokens=False))
    assert hiding[0]
    assert not any(hiding[1:] + plain)


@pytest.mark.parametrize(
    ("wanted", "image_size", "fitting"),
    [(7, 28, 7), (7, 32, 8), (7, 64, 8), (4, 30, 5), (0, 28, 0), (7, 37, 7), (7, 46, 7), (7, 8, 4), (7, 36, 6)],
)
def test_patches_fit_the_images(wanted, image_size, fitting):
    assert fitting_patch(wanted, image_size) == fitting


@pytest.mark.parametrize("wanted", [4, 7, 14])
def test_clip_sees_every_pixel_at_every_size(wanted):
    """The images as they are, and black around them."""
    run = CLIPRun(model=replace(CLIP_MODEL, vision=replace(CLIP_MODEL.vision, patch_size=wanted)))
    for size in range(8, 65):
        with torch.device("meta"), warnings.catch_warnings(action="error"):
            config = CLIPStage.build_model(run, Shapes(image_size=size)).config
        assert config.vision.image_size % config.vision.patch_size == 0
        assert config.vision.image_size < size + config.vision.patch_size
        images = torch.randint(256, (2, 1, size, size), dtype=torch.uint8)
        seen = Preprocess(config.vision.image_size, 1, config.preprocess)(images).double()
        assert ((seen + 1) * 127.5).round().sum() == images.sum()


def test_a_clip_that_does_not_see_every_pixel_says_so():
    with pytest.warns(UserWarning, match="patches of 7 pixels do not divide 13: CLIP does not see the last 6 rows"):
        VisionTransformer(VisionConfig(image_size=13, patch_size=7, width=8, heads=2, layers=1), 8)


def test_images_that_no_patch_divides_are_surrounded_with_black(inputs, capsys):
    parts = (replace(part.data, images=part.data.images[..., :13, 4:17]) for part in (inputs.train, inputs.validation))
    train_data, validation = parts
    small = replace(inputs, train=replace(inputs.train, data=train_data))
    small = replace(small, validation=replace(inputs.validation, data=validation))
    stage = clip_stage(small, model=replace(CLIP_MODEL, vision=replace(CLIP_MODEL.vision, patch_size=7)))
    assert "clip: images of 13 pixels are surrounded with black up to 14, a multiple of 7" in capsys.readouterr().out
    assert stage.objective(stage.batch(draw_of(20))).isfinite()
    assert stage.evaluate(stage.model)


def test_patches_of_another_size_than_asked_for_are_told(inputs, capsys):
    clip_stage(inputs)
    assert "patches" not in capsys.readouterr().out
    clip_stage(inputs, model=replace(CLIP_MODEL, vision=replace(CLIP_MODEL.vision, patch_size=5)))
    assert "clip: patches of 4 pixels, as 5 does not divide 28" in capsys.readouterr().out


def test_data_whose_images_are_all_the_same_is_refused():
    data = made_up_data(20, seed=0)
    check_images_differ(data)
    data.images[:] = data.images[0].clone()
    with pytest.raises(UserError, match="all images of made-up have the same pixels"):
        check_images_differ(data)


@pytest.mark.parametrize(
    ("run", "drop"),
    [
        (PriorRun(drop=0.0), None),
        (PriorRun(drop=0.0, sampling=PriorSettings(guidance=2.0)), "drop"),
        (DecoderRun(drop_image=0.0), "drop-image"),
        (DecoderRun(drop_text=0.0), "drop-text"),
        (DecoderRun(drop_image=0.0, sampling=DecoderSettings(guidance=1.0)), None),
        (TextDecoderRun(), None),
        (TextDecoderRun(drop_text=0.0), "drop-text"),
    ],
)
def test_guidance_needs_training_that_drops_the_condition(run, drop):
    if drop is None:
        check(run, spell=as_option)
        return
    with pytest.raises(UserError, match=rf"--{drop} must be above 0 for guidance"):
        check(run, spell=as_option)


def test_data_whose_captions_are_all_the_same_is_refused():
    data = made_up_data(20, seed=0)
    captions = ["an image", "a red one", "a blue one"]
    data.captioner = ListedCaptions(captions, torch.tensor([[0, 1], [0, 2]] * 10), torch.tensor([2] * 20))
    check_captions_differ(data)  # their second captions do
    data.captioner = ListedCaptions(captions, torch.tensor([[0, 1]] * 20), torch.tensor([2] * 20))
    with pytest.raises(UserError, match="all images of made-up have the same captions"):
        check_captions_differ(data)
