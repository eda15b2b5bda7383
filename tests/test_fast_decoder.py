"""The fast decoder: consistency sampling, the objectives that train it, and its place in a pipeline."""

import copy
import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, made_up_data
from networks import randomise
from three_stages import seeded

from configs.fast_decoder import PRESETS
from stages import train
from stages.decoder import DecoderBatch
from stages.distillation import HUBER, ConsistencyObjective, levels_at, saturated_huber
from stages.evaluation.few_calls import measure_few_calls
from stages.evaluation.judge import Classifier, JudgeConfig
from stages.evaluation.reference import Reference
from stages.evaluation.samples import choose_rows
from stages.evaluation.section import EvaluationContext
from stages.fast_decoder import FastDecoderRun, closer_levels
from stages.run_options import PartRun
from stages.train import start_from_pipeline
from unclip import UnCLIP
from unclip.clip import encode_captions
from unclip.decoder.consistency_decoder import consistency_levels
from unclip.diffusion.process import CLEAN, VariancePreserving
from unclip.diffusion.samplers import Denoised, consistency
from unclip.diffusion.spacing import karras_levels
from unclip.errors import UserError
from unclip.fields import as_option, check
from unclip.settings import DecoderSettings, FastDecoderSettings, Sampling
from unclip.store.index import read_sampling
from unclip.store.manifest import read_manifest
from unclip.store.parts import load_part

PROCESS = VariancePreserving()


def ratios(levels) -> list[float]:
    return [level.sigma / level.alpha for level in levels]


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [80]), (2, [80, 0.6]), (3, [80, 1.2, 0.3]), (4, [80, 1.2, 0.6, 0.3])]
)
def test_calls_are_spaced_evenly_in_the_logarithm_of_the_noise(steps, expected):
    levels = consistency_levels(PROCESS, FastDecoderSettings(steps, levels=(1.2, 0.3)))
    assert levels[-1] == CLEAN
    assert ratios(levels[:-1]) == pytest.approx(expected, rel=0.02)  # the nearest of a thousand times


def test_samples_of_an_exact_consistency_function_have_the_data_s_deviation():
    """For data N(0, 0.5^2), the path's end is x times 0.5 / sqrt(0.25 alpha^2 + sigma^2), at every number of calls."""

    def jump(x, level):
        return Denoised(x * 0.5 / math.sqrt(0.25 * level.alpha**2 + level.sigma**2))

    for steps in (1, 2, 4):
        levels = consistency_levels(PROCESS, FastDecoderSettings(steps))
        x = consistency(jump, torch.randn(100_000, generator=seeded()), levels, lambda x: torch.randn(x.shape))
        assert x.std().item() == pytest.approx(0.5, rel=0.02)


def test_a_step_of_heun_follows_the_exact_path_of_a_gaussian(monkeypatch):
    """For data N(0, 0.5^2) the teacher's clean image is the posterior mean, and its path is known in closed form."""
    levels = karras_levels(PROCESS, 32)
    upper = torch.arange(8, 24)
    start = torch.randn(16, 1, 4, 4, generator=seeded(), dtype=torch.float64)

    def posterior_mean(decoder, x, at, condition):
        alpha, sigma = (part.double()[:, None, None, None] for part in (at.alpha, at.sigma))
        return x * 0.25 * alpha / (0.25 * alpha**2 + sigma**2)

    def deviation(at):
        return (0.25 * at.alpha.double() ** 2 + at.sigma.double() ** 2).sqrt()[:, None, None, None]

    monkeypatch.setattr("stages.distillation.clean_images", posterior_mean)
    before = levels_at(upper, levels, PROCESS)
    after = levels_at(upper + 1, levels, PROCESS)
    x = 0.3 * start * deviation(before)
    batch = FakeBatch(before, after)
    reached, _ = ConsistencyObjective(None, FakeTeacher(), DecoderSettings(guidance=1.0)).heun_step(x, batch)
    torch.testing.assert_close(reached, 0.3 * start * deviation(after), rtol=2e-2, atol=1e-3)


class FakeTeacher(torch.nn.Module):
    def condition(self, embeddings, drop, text):
        return None


class FakeBatch:
    def __init__(self, upper, lower):
        self.images = self
        self.levels = upper
        self.lower = lower
        self.embeddings = self.drop = self.text = None


@pytest.mark.parametrize(("place", "guidance"), [(2, 5.0), (14, 5.0), (2, 1.0)])
def test_the_teacher_is_guided_as_it_draws(tiny, place, guidance):
    """Inside and outside of the interval of guidance the clean images equal those of the denoiser that draws."""
    decoder = tiny.decoder
    settings = DecoderSettings(guidance=guidance, guidance_interval=(0.3, 1.0))
    levels = karras_levels(decoder.process, 16)
    text = encode_captions(tiny.clip, tiny.tokenizer, ["a bag", "a coat"])
    x = torch.randn(2, *decoder.image_shape, generator=seeded())
    embeddings = torch.nn.functional.normalize(torch.randn(2, 32, generator=seeded()), dim=-1)
    keep = torch.zeros(2, dtype=torch.bool)
    images = DecoderBatch(None, embeddings, keep, text, None, None)
    at = levels_at(torch.full((2,), place), levels, decoder.process)
    with torch.no_grad():
        expected = decoder.denoiser(embeddings, text, settings)(x, levels[place]).x0
        found = ConsistencyObjective(decoder, decoder, settings).teacher_images(x, at, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_black_and_white_may_be_overshot_and_nothing_else():
    target = torch.tensor([-1.0, -1.0, 1.0, 1.0, 0.5]).view(5, 1, 1, 1)
    predicted = torch.tensor([-1.2, -0.8, 1.2, 0.8, 0.7]).view(5, 1, 1, 1)
    missed = math.sqrt(0.2**2 + HUBER**2) - HUBER
    expected = torch.tensor([0, missed, 0, missed, missed])
    torch.testing.assert_close(saturated_huber(predicted, target), expected)


def test_levels_of_tuning_start_clean_and_come_closer():
    upper = levels_at(torch.arange(30), karras_levels(PROCESS, 30), PROCESS)
    ratio = upper.sigma / upper.alpha
    assert closer_levels(upper, PROCESS, 0.0).sigma.eq(0).all()
    last = torch.zeros(30)
    for progress in (0.3, 0.6, 1.0):
        lower = closer_levels(upper, PROCESS, progress)
        share = lower.sigma / lower.alpha / ratio
        assert (share <= 1).all()
        assert (share >= last - 0.02).all()
        last = share
    formula = 1 - (1 + 8 / (1 + ratio.exp())) / 2**8
    torch.testing.assert_close(last, formula, rtol=0.02, atol=0.02)


def test_settings_of_the_decoder_ask_for_the_decoder():
    assert Sampling().for_drawing().fast_decoder.steps == 2
    assert Sampling().for_drawing(style="faithful").fast_decoder.steps == 0
    assert Sampling().for_drawing(style="faithful", fast_steps=4).fast_decoder.steps == 4
    assert Sampling().for_drawing(prior_steps=3, fast_num_candidates=2).fast_decoder.steps == 2
    assert Sampling().for_drawing(steps=50).fast_decoder.steps == 0
    assert Sampling().override(steps=50).fast_decoder.steps == 2
    assert Sampling().for_drawing(steps=50, fast_steps=1).fast_decoder.steps == 1


@pytest.fixture(scope="module")
def with_fast_decoder(trained, tmp_path_factory):
    """The tiny pipeline with a fast decoder, trained by the ordinary program."""
    folder = tmp_path_factory.mktemp("fast") / "tiny"
    shutil.copytree(trained.folder, folder)
    train_fast_decoder(folder)
    return folder


def train_fast_decoder(folder, *options):
    train.main(["fast_decoder", "--preset", "tiny", "--data.limit", "200", "--out", str(folder), *options])


def test_the_decoder_is_named_as_its_teacher(with_fast_decoder):
    teacher = read_manifest(with_fast_decoder / "decoder")
    student = read_manifest(with_fast_decoder / "fast_decoder")
    assert student.parents["decoder"] == teacher.sha256
    assert student.model == teacher.model
    assert student.sha256 != teacher.sha256


def test_it_draws_by_itself_and_steps_back_for_the_decoder(with_fast_decoder, tiny):
    pipe = UnCLIP.from_pretrained(with_fast_decoder)
    fast = pipe("a bag", n=3)
    assert np.array_equal(fast.images, pipe("a bag", n=3, fast_steps=2).images)
    assert not np.array_equal(fast.images, tiny("a bag", n=3).images)
    assert np.array_equal(pipe("a bag", n=3, fast_steps=0).images, tiny("a bag", n=3).images)
    assert np.array_equal(pipe("a bag", n=3, steps=4).images, tiny("a bag", n=3, steps=4).images)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_sample_depends_on_its_own_seed(with_fast_decoder, steps):
    pipe = UnCLIP.from_pretrained(with_fast_decoder)
    several = pipe(["a bag", "a coat"], n=3, seed=5, fast_steps=steps, fast_num_candidates=2, batch_size=2)
    alone = pipe("a coat", seed=6, fast_steps=steps, fast_num_candidates=2)
    assert np.abs(several.images[4].astype(int) - alone.images[0]).max() <= 1  # rounding differs with the batch
    again = pipe.decode(several.embeddings, several.captions, [5, 6, 7] * 2, noise=several.noise, fast_steps=1)
    assert again.shape == several.images.shape


def test_every_step_is_watched(with_fast_decoder):
    moments = []
    UnCLIP.from_pretrained(with_fast_decoder)("a bag", fast_steps=3, on_step=moments.append)
    assert [moment.step for moment in moments] == [0, 1, 2]
    assert {moment.steps for moment in moments} == {3}


def test_another_decoder_than_its_teacher_is_refused(with_fast_decoder, tmp_path):
    folder = shutil.copytree(with_fast_decoder, tmp_path / "changed")
    shutil.rmtree(folder / "decoder")
    shutil.copytree(ROOT / "checkpoints" / "fashion-mnist" / "decoder", folder / "decoder")
    with pytest.raises(UserError, match=r"the (fast_)?decoder was trained on the (clip|decoder)"):
        UnCLIP.from_pretrained(folder)


def test_it_needs_a_decoder(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "none")
    shutil.rmtree(tmp_path / "none" / "decoder")
    with pytest.raises(UserError, match="has no trained decoder; train it with"):
        train_fast_decoder(tmp_path / "none")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("method", ["path", "distillation", "tuning"])
def test_every_preset_takes_every_method(preset, method):
    check(replace(preset, method=method), spell=as_option)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"points": 8}, None),
        ({"method": "distillation", "points": 8}, "points"),
        ({"log_sigma": (0.0, 1.0)}, "log-sigma"),
    ],
)
def test_options_that_a_method_does_not_read_are_refused(options, name):
    run = FastDecoderRun(**options)
    if name is None:
        check(run, spell=as_option)
        return
    with pytest.raises(UserError, match=f"--{name} must be left out, as the method {run.method} does not read it"):
        check(run, spell=as_option)


def test_steps_of_the_decoder_that_are_given_count_even_if_they_are_its_own(with_fast_decoder, script, tmp_path):
    own = read_sampling(with_fast_decoder).decoder.steps
    with_it = script("sample", "a bag", "--checkpoint", with_fast_decoder, "--steps", own, "--out", tmp_path)
    assert with_it.code == 0, with_it.err
    settings = json.loads((tmp_path / "samples.json").read_text())["settings"]
    assert (settings["fast_decoder"]["steps"], settings["decoder"]["steps"]) == (0, own)


def test_of_a_fast_decoder_on_another_clip_the_weights_are_kept_and_the_statistics_are_not(with_fast_decoder):
    given = load_part(with_fast_decoder / "fast_decoder")[0]
    stage = SimpleNamespace(model=randomise(copy.deepcopy(given)))
    stage.model.network.image_condition.scaler.mean.fill_(5.0)
    start_from_pipeline(
        "fast_decoder", PartRun(init_from=with_fast_decoder), stage, SimpleNamespace(parents={"clip": "c" * 64})
    )
    assert (stage.model.network.image_condition.scaler.mean == 5).all()
    for name, weight in given.named_parameters():
        torch.testing.assert_close(stage.model.get_parameter(name), weight)


@pytest.mark.parametrize("method", ["distillation", "tuning"])
def test_the_other_methods_train_too(with_fast_decoder, tmp_path, method):
    folder = shutil.copytree(with_fast_decoder, tmp_path / method, ignore=shutil.ignore_patterns("fast_decoder"))
    train_fast_decoder(folder, "--method", method, "--train.steps", "3")
    assert math.isfinite(read_manifest(folder / "fast_decoder").figures["distance"])


def test_the_evaluation_compares_its_network_calls_with_the_decoder(with_fast_decoder):
    pipe = UnCLIP.from_pretrained(with_fast_decoder)
    data = made_up_data(40, seed=0)
    torch.manual_seed(0)
    judge = Classifier(JudgeConfig(width=8)).eval()
    embedded = SimpleNamespace(data=data, embeddings=pipe.encode_image(data.images.permute(0, 2, 3, 1).numpy()))
    context = EvaluationContext(pipe, Reference.from_images(judge, data), embedded, embedded, data, 2, seed=7)
    section = measure_few_calls(context)
    assert list(section.figures) == ["1 network calls", "2 network calls", "4 network calls", "the decoder"]
    matching = {name: data.labels == label for label, name in enumerate(data.classes)}
    rows = choose_rows(data, matching, 2)
    captions = [caption for caption in data.class_captions for _ in range(2)]
    expected = pipe.decode(embedded.embeddings[rows], captions, 7, fast_steps=1)
    assert np.array_equal(section.arrays["1 network calls: images"], expected)
    expected = pipe.decode(embedded.embeddings[rows], captions, 7, num_candidates=1)
    assert np.array_equal(section.arrays["the decoder: images"], expected)
    assert all(figures["caption_accuracy"]["n"] == 20 for figures in section.figures.values())
