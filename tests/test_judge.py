"""The classifier that judges samples: what it learns, and how long and how often it is trained."""

import shutil
from dataclasses import replace

import pytest
import torch
from conftest import made_up_data
from faults import forked

from stages.evaluation.evaluate import JUDGE, suited_to
from stages.evaluation.judge import Classifier, JudgeConfig, judge_images
from stages.evaluation.judge_training import trained_judge
from unclip.store.lock import in_turn


def test_classifier_learns_what_images_show_and_is_trained_once(tmp_path, monkeypatch):
    train, held_out = made_up_data(400, 0), made_up_data(100, 1)
    config = replace(JUDGE, steps=60, batch_size=32, lr=1e-2, warmup=5, evaluate_every=60)
    device = torch.device("cpu")
    first = trained_judge(train, held_out, config, device, tmp_path)
    accuracy = (judge_images(first, held_out.images)[0].argmax(dim=1) == held_out.labels).float().mean()
    assert accuracy > 0.9  # chance is 0.1
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    again = trained_judge(train, held_out, config, device, tmp_path)
    assert torch.equal(judge_images(again, held_out.images)[0], judge_images(first, held_out.images)[0])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")} == weights
    trained_judge(train, held_out, replace(config, seed=1), device, tmp_path)
    assert len(list(tmp_path.rglob("model.safetensors"))) == 2
    monkeypatch.setattr("stages.evaluation.judge_training.FORMAT", -1)  # as of a version that reads other files
    trained_judge(train, held_out, config, device, tmp_path)
    assert len(list(tmp_path.rglob("model.safetensors"))) == 3


def test_of_two_evaluations_at_once_one_trains_the_judge_and_the_other_waits(tmp_path):
    config = replace(JUDGE, steps=20, batch_size=32, warmup=5, evaluate_every=20)

    def judge():
        trained_judge(made_up_data(100, 0), made_up_data(100, 1), config, torch.device("cpu"), tmp_path / "cache")

    judge()
    [folder] = (tmp_path / "cache").iterdir()
    folder.rename(tmp_path / "trained")
    with in_turn(folder):
        other = forked(judge, tmp_path / "log")
        other.said(f"another process is making {folder}; waiting until it ends")
        shutil.copytree(tmp_path / "trained", folder, dirs_exist_ok=True)
    status, said = other.wait()
    assert status == 0, said
    assert "is trained already" in said


def test_classifier_takes_colour_and_gives_the_features_of_its_last_layer():
    model = Classifier(JudgeConfig(classes=4, channels=3, width=8)).eval()
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    logits, features = judge_images(model, images, batch_size=3)
    assert logits.shape == (7, 4)
    assert features.shape == (7, 32)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model.head(features))
    torch.testing.assert_close(judge_images(model, images.permute(0, 2, 3, 1).numpy())[0], logits)


@pytest.mark.parametrize(("images", "steps"), [(60, 235), (10, 40), (60_000, 4800), (2000, 4800)])
def test_the_judge_trains_as_long_as_its_data_has_something_to_teach(images, steps):
    suited = suited_to(JUDGE, images)
    assert suited.steps == steps
    assert suited.warmup / steps == pytest.approx(JUDGE.warmup / JUDGE.steps, abs=0.02)
    assert 1 <= suited.evaluate_every <= steps
    assert (suited == JUDGE) == (steps == JUDGE.steps)
