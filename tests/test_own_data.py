"""All stages on captioned colour images without classes, by the same commands as on Fashion-MNIST."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_one_error_line, run_program, run_python
from own_images import COLOURS
from PIL import Image

from data.image_folder import read_image_folder
from data.problems import Problems
from data.source_config import SourceConfig
from data.splits import split_records
from stages.data_config import DataConfig
from stages.evaluation.evaluate import EvaluateOptions
from stages.evaluation.judge import judge_images
from stages.evaluation.judge_training import trained_judge
from unclip import UnCLIP

CAPTIONS = [f"a {size} {colour} square" for colour in COLOURS for size in ("small", "large")]
PARTS = ("clip", "prior", "decoder")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 96 images of 40x24 pixels with text files beside them.

    One lacks its text file, and another, in the validation split, is broken.
    """
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(96):
        caption = CAPTIONS[number % len(CAPTIONS)]
        _, size, colour, _ = caption.split()
        picture = Image.new("RGB", (40, 24), (120, 120, 120))
        side, jitter = 5 if size == "small" else 9, int(generator.integers(-2, 3))
        picture.paste(COLOURS[colour], (20 + jitter - side, 12 - side, 20 + jitter + side, 12 + side))
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{caption}\n{caption} on grey\n")
    (folder / "7.txt").unlink()
    broken = split_records(read_image_folder(SourceConfig(str(folder)), Problems("x")).records, "validation")[0]
    (folder / broken.name).write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def pipeline(images, tmp_path_factory):
    """A tiny pipeline trained on them by commands of which the first alone names them, and what each printed."""
    folder, said = tmp_path_factory.mktemp("own") / "run", {}
    for stage in PARTS:
        data = ("--data", images, "--data.size", "24") if stage == "clip" else ()
        run = run_python if stage == "clip" else run_program  # one of them in a new interpreter
        done = run(f"train_{stage}.py", "--preset", "tiny", *data, "--out", folder)
        assert done.code == 0, done.err
        said[stage] = done.out
    return folder, said


def test_every_stage_trains_on_a_folder_and_says_what_it_left_out(pipeline, images):
    folder, said = pipeline
    for stage in PARTS:
        assert "2 rows of" in said[stage]
        assert "cannot be read as an image" in said[stage]
        assert "7.png: has no 7.txt beside it" in said[stage]
        manifest = json.loads((folder / stage / "config.json").read_text())
        assert manifest["data"]["name"].endswith("/train")
        assert manifest.pop("provenance")["source"] == str(images)
        assert "/tmp" not in json.dumps(manifest), "a path of this machine"
        assert list((folder / stage / "train").glob("preview-*.png"))
    assert json.loads((folder / "clip" / "config.json").read_text())["model"]["vision"]["patch_size"] in (6, 8)


def test_samples_have_the_size_and_the_channels_of_the_data(pipeline):
    output = UnCLIP.from_pretrained(pipeline[0])(CAPTIONS[:2], n=2, steps=4)
    assert output.images.shape == (4, 24, 24, 3)


SHORT = ("--judge.steps", "100", "--judge.evaluate-every", "50", "--judge.warmup", "10", "--judge.ema", "0.9")


def test_evaluation_of_data_without_classes(pipeline, images, tmp_path):
    done = run_program(
        "-m", "stages.evaluate", "--checkpoint", pipeline[0], "--samples", "40", "--sampling.steps", "3",
        "--sampling.prior-steps", "3", *SHORT, "--out", tmp_path / "report",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert report["judge"] == "matcher"
    assert report["same_training_data"]
    assert "held_out" not in report
    asked = list(report["clip"]["zero_shot_by_class"])
    assert set(asked) <= {*CAPTIONS, *(f"{caption} on grey" for caption in CAPTIONS)}
    arrays = np.load(tmp_path / "report" / "evaluation.npz")
    data = DataConfig(str(images), size=24)
    settings = replace(EvaluateOptions().judge, steps=100, evaluate_every=50, warmup=10, ema=0.9)
    train, validation = data.load("train", "validation")
    matcher = trained_judge(train, validation.captions_as_classes(), settings, torch.device("cpu")).choose_among(asked)
    right = (judge_images(matcher, arrays["prior: images"])[0].argmax(dim=1).numpy() == arrays["prior: labels"]).mean()
    assert report["error_budget"]["prior"]["caption_accuracy"]["value"] == pytest.approx(right)
    assert report["reference"]["classifier_accuracy"]["value"] > 0.4  # of six and more captions
    text = (tmp_path / "report" / "evaluation.md").read_text()
    assert f"nearest of all {len(asked)} that were asked for" in text
    for word in ("class", "plain", "phrasings", "tone", "garment", "attribute", "never shown"):
        assert word not in text, f"{word}: not of this data"
    assert "So few images say little" in text


def test_evaluation_where_a_class_lacks_images_asks_for_the_captions_instead(pipeline, tmp_path):
    labels = np.arange(60) % 2
    labels[0] = 2  # one image, so that it is in one of the splits alone
    images = np.random.default_rng(0).integers(0, 256, (60, 24, 24)).astype(np.uint8)
    np.savez(tmp_path / "few.npz", images=images, labels=labels, class_names=["cat", "dog", "cow"])
    done = run_program(
        "-m", "stages.evaluate", "--checkpoint", pipeline[0], "--data", tmp_path / "few.npz", "--samples", "20",
        "--sampling.steps", "2", "--sampling.prior-steps", "2", *SHORT, "--out", tmp_path / "report",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert report["judge"] == "matcher"
    assert set(report["clip"]["zero_shot_by_class"]) <= {"an image of a cat", "an image of a dog", "an image of a cow"}


def test_too_few_samples_for_the_captions_are_refused(pipeline, emoji_files):
    done = run_program(
        "-m", "stages.evaluate", "--checkpoint", pipeline[0], "--data", "emoji", "--samples", "30"
    )  # fmt: skip
    assert_one_error_line(done, "--samples must be at least 38")


def test_fine_tuning_starts_from_another_pipeline_and_needs_its_shapes(pipeline, trained, images, tmp_path):
    arguments = ("--preset", "tiny", "--data", images, "--data.size", "24", "--train.steps", "2")
    done = run_program("train_clip.py", *arguments, "--init-from", pipeline[0], "--out", tmp_path / "tuned")
    assert done.code == 0, done.err
    start = json.loads((tmp_path / "tuned" / "clip" / "config.json").read_text())["parents"]["start"]
    assert start == json.loads((pipeline[0] / "clip" / "config.json").read_text())["sha256"]
    done = run_program("train_clip.py", *arguments, "--init-from", trained.folder, "--out", tmp_path / "other")
    assert_one_error_line(done, str(trained.folder), "vision.")
    assert not (tmp_path / "other").exists()
