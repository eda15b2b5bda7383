"""The evaluation: each section on the trained tiny pipeline, and figures recomputed from the files it wrote."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import assert_one_error_line, made_up_data
from torch import nn

from data.fashion_mnist_captions import CLASSES, PLAIN_CAPTIONS, attribute_captions, attribute_codes, attributes
from stages.evaluation import evaluate as evaluation
from stages.evaluation import sweep
from stages.evaluation.error_budget import stage_losses
from stages.evaluation.evaluate import EvaluateOptions, evaluate, nan_to_none
from stages.evaluation.judge import Classifier, JudgeConfig, judge_images
from stages.evaluation.judge_training import trained_judge
from stages.evaluation.memorisation import compare_with_training_images
from stages.evaluation.metrics import frechet_distance, mean_with_interval, share_with_interval
from stages.evaluation.reference import Reference
from stages.evaluation.report import OTHER_DATA, markdown, number, percent, table
from stages.evaluation.samples import DRIVERS, resize_images
from stages.evaluation.section import Evaluator, Section
from unclip import UnCLIP
from unclip.errors import UserError
from unclip.registry import PARTS, Part
from unclip.store.manifest import read_manifest

SETTINGS = EvaluateOptions(
    samples=40,
    sweep=20,
    data=replace(EvaluateOptions().data, limit=600),
    sampling=replace(EvaluateOptions().sampling, steps=3, prior_steps=3),
    judge=replace(EvaluateOptions().judge, steps=20, batch_size=32, warmup=5, evaluate_every=20),
)
SMALL_PRIOR_GRID = {
    "prior_guidance": (1.0, 2.0),
    "prior_num_candidates": (1,),
    "prior_threshold": (0.5, 0.9),  # a single candidate is not drawn again for the second
}
SMALL_DECODER_GRID = {
    "guidance": (1.0,),
    "guidance_interval": ((0.0, 1.0), (0.2, 0.8)),  # unguided samples are not drawn again for the second
    "sampler": ("dpmpp", "ddim"),
    "steps": (3,),
    "eta": (0.0,),
}
N = SETTINGS.samples // len(CLASSES)


def measure_brightness(context):
    """An evaluator from outside: all that it takes is this function and a row of the table."""
    return Section({"samples": {"mean": context.pipeline_samples.images.mean() / 255}})


@pytest.fixture(scope="module")
def done(trained, tmp_path_factory):
    """The folder of a report on the tiny pipeline, and what evaluate returned. Read only."""
    out = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "PRIOR_GRID", SMALL_PRIOR_GRID)
        patch.setattr(sweep, "DECODER_GRID", SMALL_DECODER_GRID)
        patch.setitem(evaluation.EVALUATORS, "brightness", Evaluator(measure_brightness))
        return out, evaluate(replace(SETTINGS, checkpoint=trained.folder, out=out))


@pytest.fixture(scope="module")
def judged(done):
    """The cached classifier of that report, the test images, and their features."""
    data = SETTINGS.data
    classifier = trained_judge(*data.load("train", "validation", held_out=True), SETTINGS.judge, torch.device("cpu"))
    (test,) = data.load("test")
    return classifier, test, judge_images(classifier, test.images)[1]


def test_report_is_written_as_json_markdown_and_pictures(done):
    out, report = done
    assert json.loads((out / "evaluation.json").read_text()) == json.loads(json.dumps(report))
    for name in ("evaluation.json", "evaluation.md"):
        assert str(out.parent) not in (out / name).read_text(), "a path of this machine"
    text = (out / "evaluation.md").read_text()
    for name in ("grid", "attributes", "held-out", "budget", "memorisation", "strip"):
        assert f"({name}.png)" in text
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for section in ("CLIP", "Prior", "End to end", "Error budget", "Memorisation", "Sweep"):
        assert f"\n## {section}" in text
    for key in ("stages", "data", "samples", "seed", "sampling", "hardware", "seconds"):
        assert report[key] or key == "seed"


def test_figures_can_be_recomputed_from_the_arrays(done, judged):
    out, report = done
    classifier, _, real = judged
    arrays = np.load(out / "evaluation.npz")
    for way in DRIVERS:
        images, labels = arrays[f"{way}: images"], arrays[f"{way}: labels"]
        assert images.shape == (SETTINGS.samples, 28, 28, 1)
        assert (np.bincount(labels) == N).all()
        logits, features = judge_images(classifier, images)
        figures = report["error_budget"][way]
        assert figures["caption_accuracy"]["value"] == pytest.approx((logits.argmax(1).numpy() == labels).mean())
        assert figures["caption_accuracy"]["n"] == SETTINGS.samples
        assert figures["frechet"] == pytest.approx(frechet_distance(features, real), rel=1e-6)
        assert len(np.unique(images, axis=0)) > 0.9 * len(images), f"{way}: the same images counted again"
    predicted = judge_images(classifier, arrays["prior: images"])[0].argmax(1).numpy()
    for i, row in enumerate(report["error_budget"]["prior"]["confusion"]):
        assert row == np.bincount(predicted[i * N : (i + 1) * N], minlength=10).tolist()


def test_obedience_is_what_the_rule_says_of_the_images(done, judged):
    out, report = done
    bounds = judged[1].bounds
    arrays = np.load(out / "evaluation.npz")
    asked = {a.caption: a for a in attribute_captions()}
    for kind, figures in (
        ("attributes", report["error_budget"]["prior"]["attributes"]),
        ("held-out", report["held_out"]),
    ):
        obeyed = []
        captions = [asked[caption] for caption in arrays[f"prior: {kind} captions"].tolist()]
        images = torch.from_numpy(arrays[f"prior: {kind} images"]).permute(0, 3, 1, 2)
        for measure, a in zip(attributes(images), captions, strict=True):
            code = attribute_codes(measure[None], torch.tensor([a.label]), bounds)[0, a.measure]
            obeyed.append((int(code) == a.code, a.word))
        assert {a.held_out for a in captions} == {kind == "held-out"}
        assert figures["all"]["obeyed"]["value"] == pytest.approx(np.mean([right for right, _ in obeyed]))
        if kind == "attributes":
            for word in ("dark", "light", "narrow", "wide"):
                own = [right for right, asked_word in obeyed if asked_word == word]
                assert figures[word]["obeyed"]["value"] == pytest.approx(np.mean(own))
                assert figures[word]["obeyed"]["n"] == len(own)


def test_each_way_drives_the_decoder_as_it_says(done, tiny, judged):
    arrays = np.load(done[0] / "evaluation.npz")
    settings = {"steps": 3, "prior_steps": 3, "prior_spacing": "even"}  # as SETTINGS has it, unlike the pipeline
    (validation,) = SETTINGS.data.load("validation")
    label = 3
    caption, rows = PLAIN_CAPTIONS[label], (validation.labels == label).nonzero()[:N, 0]
    own, settings["seed"] = slice(label * N, label * N + N), label * N
    assert (arrays["prior: images"][own] == tiny([caption], n=N, **settings).images).all()  # what sample.py draws
    true = tiny.encode_image(validation.images[rows].permute(0, 2, 3, 1).numpy())
    by_hand = {
        "true embedding": tiny.decode(true, [caption] * N, **settings),
        "text embedding": tiny.decode(tiny.encode_text([caption] * N), [caption] * N, **settings),
        "caption alone": tiny.decode(None, [caption] * N, **settings),
        "nothing": tiny.decode(None, [""] * N, **settings),
    }
    for way, images in by_hand.items():
        difference = arrays[f"{way}: images"][own].astype(int) - images
        assert abs(difference).max() <= 1, way  # embeddings computed in another batch round differently


def test_zero_shot_accuracy_equals_one_computed_through_the_pipeline(done, tiny, judged):
    test = judged[1]
    images = tiny.encode_image(test.images.permute(0, 2, 3, 1).numpy())
    weights = torch.stack([tiny.encode_text(prompts).mean(dim=0) for prompts in test.class_prompts])
    weights = weights / weights.norm(dim=1, keepdim=True)
    right = (images @ weights.T).argmax(dim=1) == test.labels
    figures = done[1]["clip"]
    assert figures["zero_shot"]["value"] == pytest.approx(right.float().mean().item(), abs=0.005)
    plain = (images @ tiny.encode_text(list(PLAIN_CAPTIONS)).T).argmax(dim=1) == test.labels
    assert figures["zero_shot_plain_caption"]["value"] == pytest.approx(plain.float().mean().item(), abs=0.005)
    assert sum(f["n"] for f in figures["zero_shot_by_class"].values()) == len(test)


def test_share_of_the_gap_is_that_of_the_mean_cosines(done):
    """Over the pairs of which the ceiling is known, which are all: each caption describes several images."""
    for row in done[1]["prior"]["cosines"]:
        sample, text, ceiling = (row[name]["value"] for name in ("sample", "text", "ceiling"))
        assert row["ceiling"]["n"] == row["sample"]["n"] == row["gap_closed"]["n"]
        assert row["gap_closed"]["value"] == pytest.approx((sample - text) / (ceiling - text), rel=1e-4)
    assert f"{100 * row['gap_closed']['value']:.0f} ±" in (done[0] / "evaluation.md").read_text()


def test_memorisation_needs_nothing_but_its_arguments():
    train, test = made_up_data(40, 0), made_up_data(30, 1)
    torch.manual_seed(0)
    reference = Reference.from_images(Classifier(JudgeConfig(width=8)).eval(), test)
    samples = torch.cat([train.images[:3], test.images[5:9]])  # three copies
    section = compare_with_training_images(samples.permute(0, 2, 3, 1).numpy(), train, reference, seed=0)
    distances = np.sort([
        min(np.linalg.norm(a - b) for b in (train.images.numpy().reshape(40, -1) / 255.0))
        for a in (samples.numpy().reshape(7, -1) / 255.0)
    ])  # fmt: skip
    assert section.figures["pixels"]["samples_median"] == pytest.approx(distances[3], rel=1e-4)
    assert (distances[:3] == 0).all()
    for space in ("pixels", "features"):
        assert section.figures[space]["samples_below_test_1st_percentile"]["value"] >= 3 / 7
    assert list(section.pictures) == ["memorisation"]


def test_prior_is_put_beside_its_ceiling_and_its_floors(done):
    rows = done[1]["prior"]["cosines"]
    assert [(row["prior_num_candidates"], row["prior_guidance"]) for row in rows] == [
        (1, 1.0),
        (1, 1.5),
        (1, 2.0),
        (1, 4.0),
        (4, 1.0),
    ]
    for row in rows:
        assert all(-1 <= row[name]["value"] <= 1 for name in ("sample", "text", "unrelated", "ceiling"))
    assert rows[0]["sample"]["value"] != rows[-1]["sample"]["value"]
    assert 0 < done[1]["prior"]["spread_of_real"]["value"] < 1


def test_a_fast_decoder_is_swept_over_its_calls_and_levels():
    combinations = list(sweep.fast_combinations())
    assert [row["fast_steps"] for row in combinations] == [1, 2, 2, 2, 4, 4, 4]
    assert all(set(row) == {"fast_steps", "fast_levels"} for row in combinations)


def test_sweep_covers_the_grid_and_puts_the_best_first(done):
    rows = done[1]["sweep"]
    assert len(rows) == 4
    assert {(row["prior_guidance"], row["sampler"]) for row in rows} == {
        (p, s) for p in (1, 2) for s in ("dpmpp", "ddim")
    }
    assert all(row["caption_accuracy"]["n"] == 20 for row in rows)
    for better, worse in combinations(rows, 2):  # none is behind one that it beats in both
        assert not (
            worse["caption_accuracy"]["value"] > better["caption_accuracy"]["value"]
            and worse["frechet"] < better["frechet"]
        )
    assert set(sweep.PRIOR_GRID) == set(SMALL_PRIOR_GRID)
    assert set(sweep.DECODER_GRID) == set(SMALL_DECODER_GRID)


def made_up_budget(chain: tuple[float, float, float, float], frechet: tuple[float, float]) -> dict:
    real, zero_shot, true, prior = ({"value": p, "low": p - 0.02, "high": p + 0.02} for p in chain)
    true = {"real_images": real, "zero_shot": zero_shot, "caption_accuracy": true, "frechet": frechet[0]}
    return {"true embedding": true, "prior": {"caption_accuracy": prior, "frechet": frechet[1]}}


@pytest.mark.parametrize(
    ("chain", "weakest"),
    [
        ((0.92, 0.60, 0.58, 0.57), "clip"),
        ((0.92, 0.90, 0.40, 0.39), "decoder"),
        ((0.92, 0.90, 0.88, 0.20), "prior"),
        ((0.92, 0.90, 0.91, 0.90), "none"),  # two points are within the interval
        ((0.90, 0.91, 0.92, 0.97), "none"),
    ],
)
@pytest.mark.parametrize(("frechet", "by_frechet"), [((0.5, 2.0), "prior"), ((1.9, 2.0), "decoder")])
def test_the_stage_that_loses_most_is_named(chain, weakest, frechet, by_frechet):
    lost = stage_losses(made_up_budget(chain, frechet), floor=0.1)
    assert lost["weakest_by_accuracy"] == weakest
    assert sum(lost["accuracy_lost"].values()) == pytest.approx(chain[0] - chain[-1])
    assert lost["frechet_added"] == pytest.approx({"decoder": frechet[0] - 0.1, "prior": 2.0 - frechet[0]})
    assert lost["weakest_by_frechet"] == by_frechet


def test_settings_that_tie_share_a_rank():
    rows = [{"caption_accuracy": {"value": a}, "frechet": f} for a, f in ((0.9, 3), (0.9, 1), (0.9, 2), (0.5, 0))]
    assert [row["frechet"] for row in sweep.sort_by_ranks(rows)] == [1, 2, 3, 0]


def test_precision_and_recall_follow_their_definition(done, judged):
    """Kynkaanniemi et al. 2019, eq. 1-3, in float64, by the images in the arrays; they are no mirror of each other."""
    arrays = np.load(done[0] / "evaluation.npz")
    classifier, _, real = judged
    figures = done[1]["error_budget"]["nothing"]
    generated = judge_images(classifier, arrays["nothing: images"])[1].double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        torch.randint(len(generated), (len(generated),), generator=generator)
    real = real.double()[torch.randperm(len(real), generator=generator)[: len(generated)]]

    def inside(points, of):
        radius = torch.stack([(of - row).norm(dim=1).sort().values[3] for row in of])
        return torch.stack([((of - point).norm(dim=1) <= radius).any() for point in points]).double().mean().item()

    assert figures["precision"]["value"] == pytest.approx(inside(generated, real), abs=1 / 40 + 1e-9)
    assert figures["recall"]["value"] == pytest.approx(inside(real, generated), abs=1 / 40 + 1e-9)


def test_report_says_when_the_stages_were_trained_on_other_data(done):
    assert not done[1]["same_training_data"]  # they saw 2,000 images, of which it was given 600
    assert OTHER_DATA in markdown(done[1], [])
    assert OTHER_DATA not in markdown(done[1] | {"same_training_data": True}, [])


def test_tables_and_numbers_of_the_report():
    assert percent({"value": 0.931, "low": 0.9134, "high": 0.946, "n": 900}) == "93.1% (91.3-94.6)"
    assert number({"value": 0.8021, "low": 0.8, "high": 0.8042, "n": 90}) == "0.802 ± 0.002"
    assert number({"value": 0.8021, "low": 0.7, "high": 0.9042, "n": 90}, unit=0.01, digits=0) == "80 ± 10"
    nothing = torch.zeros(0, dtype=torch.bool)
    assert percent(share_with_interval(nothing)) == number(mean_with_interval(nothing.float())) == "-", (
        "no image of a class, no pair of a caption"
    )
    assert nan_to_none({"a": [mean_with_interval(nothing.float())["value"], 0.5]}) == {"a": [None, 0.5]}
    assert table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |\n"


def test_the_words_are_those_of_the_data(done):
    report = json.loads(json.dumps(done[1])) | {"judge": "matcher"}
    del report["held_out"], report["clip"]["attributes"]
    for figures in report["error_budget"].values():
        figures.pop("attributes", None)
    report["prior"]["cosines"][0]["gap_closed"] |= {"value": None, "low": None, "high": None, "n": 0}
    text = markdown(report, [])
    assert "its own caption is the nearest of all 10 that were asked for" in text
    assert "| zero-shot by caption |" in text
    assert "So few images" not in text
    for word in ("class", "plain", "phrasing", "attribute", "never seen"):
        assert word in markdown(done[1], []), word
        assert word not in text, f"{word}: not of this data"
    assert [line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| 1 | 1.0 |")] == ["- |"]


def test_an_evaluator_is_a_function_and_a_row(done):
    out, report = done
    brightness = np.load(out / "evaluation.npz")["prior: images"].mean() / 255
    assert report["brightness"] == {"samples": {"mean": pytest.approx(brightness)}}
    assert f"## Brightness\n\n| figure | value |\n| --- | --- |\n| samples mean | {brightness:.3f} |" in markdown(
        report, []
    )


class ToyPrior(nn.Module):
    """Returns the text embedding."""

    config = None

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def draw_embeddings(self, text, seeds, settings):
        return self.scale.detach() * text.embedding


class ToyDecoder(nn.Module):
    """Returns noise that depends on the seed alone. It has no steps."""

    config = None
    image_shape = (1, 28, 28)

    def draw_noise(self, seeds):
        return torch.stack([torch.randn(self.image_shape, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def draw_images(self, embeddings, text, seeds, settings, noise=None, on_step=None):
        return self.draw_noise(seeds).clamp(-1, 1)


class ToyUpsampler(nn.Module):
    config = None

    def process_images(self, images, embeddings, text, seeds, settings):
        return images.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def test_any_kinds_of_parts_can_be_evaluated(done, tiny, trained, monkeypatch):
    """Also a decoder without steps, and a part that enlarges its images: they are compared at the data's size."""
    monkeypatch.setitem(PARTS, "upsampler", Part({}, parents=("decoder",), optional=True))
    pipe = UnCLIP(tiny.clip, tiny.tokenizer, tiny.preprocess, ToyPrior(), ToyDecoder(), upsampler=ToyUpsampler())
    real = evaluation.load_real_images(SETTINGS)
    clip_sha256 = read_manifest(trained.folder / "clip").sha256
    context = evaluation.prepare_context(pipe, clip_sha256, real, replace(SETTINGS, sweep=0), {})
    names, left_out = evaluation.choose_evaluators(pipe, real.test, replace(SETTINGS, sweep=0))
    assert list(left_out) == ["denoising", "standard_networks", "few_calls", "upsampling", "sweep"]
    assert names == [name for name in evaluation.EVALUATORS if name not in left_out]
    sections = evaluation.run_evaluators(context, names, {})
    assert pipe(["a bag"]).images.shape == (1, 56, 56, 1)
    assert sections["error_budget"].arrays["prior: images"].shape == (SETTINGS.samples, 28, 28, 1)
    budget = sections["error_budget"].figures
    assert budget["prior"]["frechet"] == budget["text embedding"]["frechet"]


def test_only_the_named_evaluators_run_beside_the_floors(done, trained, tmp_path):
    whole = done[1]
    named = replace(SETTINGS, checkpoint=trained.folder, out=tmp_path, only=("held_out", "denoising"), sweep=0)
    report = evaluate(named)
    assert [name for name in report if name in evaluation.EVALUATORS] == ["reference", "held_out"]
    assert report["reference"] == whole["reference"]
    assert report["held_out"] == whole["held_out"]
    text = (tmp_path / "evaluation.md").read_text()
    for left_out in ("Weakest", "Error budget", "Prior", "CLIP", "Left out"):
        assert left_out not in text
    assert "Only held_out, denoising and the floors." in text
    assert f"| training images (the floor) | {whole['reference']['floor']['frechet']:.3f} |" in text
    with pytest.raises(UserError, match=r"^--only few_calls needs a fast decoder, which .* lacks$"):
        evaluate(replace(named, only=("few_calls",)))
    with pytest.raises(UserError, match=r"^--sweep is read by sweep alone; add sweep to --only$"):
        replace(named, sweep=20)
    with pytest.raises(UserError, match=r"^--only fid: no such evaluator; there are reference, clip, prior, error_bud"):
        replace(named, only=("fid",))


def test_the_report_says_what_was_left_out_and_what_it_needs(done):
    out, report = done
    assert report["left_out"]["few_calls"] == "a fast decoder"
    assert "upsampling (needs an upsampler)" in (out / "evaluation.md").read_text()


def test_images_of_another_size_are_resized_before_they_are_compared():
    images = np.zeros((1, 2, 2, 1), np.uint8)
    images[:, 1] = 200  # dark above light
    assert resize_images(images, 2) is images
    larger = resize_images(images, 4)
    assert larger.shape == (1, 4, 4, 1)
    assert larger.mean() == images.mean()
    assert larger[0, :, 0, 0].tolist() == sorted(larger[0, :, 0, 0].tolist())
    assert resize_images(larger, 2).mean() == images.mean()


def test_markdown_names_the_weakest_stage_and_the_protocol(done):
    report = json.loads(json.dumps(done[1]))
    report["lost"]["weakest_by_accuracy"] = "prior"
    text = markdown(report, [])
    assert "Weakest stage by accuracy: prior" in text
    assert "40 samples from seed 0" in text
    assert "sampler dpmpp" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--checkpoint", "nowhere"), ["nowhere does not exist", "train_clip.py"]),
        (("--samples", "5"), ["--samples", "must be from 20 to 1000000, not 5"]),
        (("--sampling.guidance", "-1"), ["--sampling.guidance must be from 0 to 100, not -1"]),
        (("--sweeps", "5"), ["did you mean --sweep"]),
    ],
)
def test_bad_input_gets_one_line(arguments, words, script):
    assert_one_error_line(script("stages.evaluate", *arguments), *words)
