"""The three stages in the one loop: what each gives it, and that a resumed training equals an uninterrupted one."""

import re
from dataclasses import replace

import pytest
import torch
from conftest import made_up_data
from runs import CPU, assert_same_run, break_off, train
from toy import SETTINGS

from data.captions import PLAIN_CAPTIONS
from data.dataset import ListedCaptions
from stages.clip import AugmentConfig, CLIPStage, fitting_patch
from stages.decoder import DecoderRun, DecoderStage
from stages.embed import EmbeddedImages, embed_images
from stages.inputs import Inputs
from stages.prior import PriorRun, PriorStage, hide_tokens, pair_cosines, pair_figures
from unclip.checkpoint import Manifest, read_manifest
from unclip.clip import CLIP, CLIPConfig, EncodedCaptions, Preprocess, TextConfig, Tokenizer, VisionConfig
from unclip.decoder import Decoder, DecoderConfig
from unclip.prior import Prior, PriorConfig
from unclip.settings import PriorSettings


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    """A small untrained CLIP, and made-up data as it sees them."""
    data, validation = made_up_data(40, seed=0), made_up_data(20, seed=1)
    plain = torch.tensor([[data.captions.index(caption)] for caption in PLAIN_CAPTIONS])
    once = torch.ones(20, dtype=torch.long)
    validation.captioner = ListedCaptions(data.captions, plain[validation.labels], once)  # pairs share their captions
    tokenizer = Tokenizer.train(data.captions, 500)
    torch.manual_seed(0)
    text = TextConfig(tokenizer.vocab_size, tokenizer.end_id, width=16, layers=1, heads=2)
    clip = CLIP(CLIPConfig(16, VisionConfig(patch_size=14, width=16, layers=1, heads=2), text)).eval()
    cache = tmp_path_factory.mktemp("cache")
    embedded = (
        embed_images(part, clip, "c" * 64, tokenizer, Preprocess(28, 1), CPU, cache) for part in (data, validation)
    )
    return Inputs(clip.config, "c" * 64, *embedded)


def clip_stage(inputs: Inputs) -> CLIPStage:
    tokenizer = Tokenizer.train(inputs.train.data.captions, 500)
    torch.manual_seed(0)
    return CLIPStage(CLIP(inputs.clip), tokenizer, inputs.train.data, inputs.validation.data, AugmentConfig(), CPU)


def prior_stage(inputs: Inputs, **options) -> PriorStage:
    torch.manual_seed(0)
    model = Prior(PriorConfig(16, 16, inputs.clip.text.context, width=16, layers=1, heads=2))
    images = inputs.train
    model.scaler.fit(images.embeddings)
    captions = images.data.draw(torch.arange(len(images)), torch.Generator().manual_seed(0))
    model.regression.fit(images.text[captions], model.scaler.scale(images.embeddings))
    return PriorStage(model, inputs, PriorRun(evaluate_on=10, **options), CPU)


def decoder_stage(inputs: Inputs) -> DecoderStage:
    torch.manual_seed(0)
    unet = {"width": 8, "multipliers": (1, 2), "blocks": 1, "condition_width": 32, "head_dim": 8}
    model = Decoder(DecoderConfig(embed_dim=16, text_width=16, **unet))
    model.image_condition.scaler.fit(inputs.train.embeddings)
    return DecoderStage(model, inputs, DecoderRun(evaluate_on=10), CPU)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", [clip_stage, prior_stage, decoder_stage])
def test_every_stage_resumed_equals_uninterrupted(make, inputs, tmp_path):
    config = replace(SETTINGS, steps=6, evaluate_every=2, preview_every=6)
    described = Manifest(make(inputs).name)
    train(tmp_path / "whole", make(inputs), config, described)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", break_off(make(inputs), "batch", 4), config, described)
    train(tmp_path / "broken", make(inputs), config, described)
    assert_same_run(tmp_path / "whole", tmp_path / "broken", described.stage)
    assert read_manifest(tmp_path / "broken" / described.stage).complete


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


def test_share_of_clips_batch_has_its_own_captions(inputs):
    stage = clip_stage(inputs)
    batch = stage.batch(torch.arange(20), seeded())
    share = batch.share(1, 2)
    assert torch.equal(share.images, batch.images[1::2])
    assert torch.equal(share.ids[share.caption], batch.ids[batch.caption][1::2])
    assert len(share.ids) == len(share.caption.unique())


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

    def draw(self, captions: EncodedCaptions, seeds, settings) -> torch.Tensor:
        noise = [torch.randn(captions.text.shape[1], generator=seeded(seed)) for seed in seeds]
        return torch.nn.functional.normalize(captions.text + self.noise * torch.stack(noise), dim=-1)


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
    captions = EncodedCaptions(torch.zeros(4000, 1), torch.zeros(4000, 9, 1), mask, torch.zeros(4000, dtype=torch.bool))
    hidden = hide_tokens(captions, seeded()).mask
    assert not (hidden & ~mask).any(), "padding came to light"
    assert hidden[:, 0].all()
    shares = hidden[mask[:, -1], 1:].float().mean(dim=1)  # of eight tokens: every number is equally likely
    counts = (shares * 8).round().long().bincount(minlength=9) / len(shares)
    torch.testing.assert_close(counts, torch.full((9,), 1 / 9), atol=0.05, rtol=0)


def test_hidden_tokens_do_not_reach_the_prior_and_none_are_hidden_in_evaluation(inputs, monkeypatch):
    def gaps(stage) -> list[bool]:
        """Whether a token follows a hidden one, in what the prior reads of a step and of a validation."""
        seen, prefix = [], stage.model.prefix
        monkeypatch.setattr(stage.model, "prefix", lambda captions: (seen.append(captions.mask), prefix(captions))[1])
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
