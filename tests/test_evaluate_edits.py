"""The measures of edits: each figure against images of which it is known, and all of them on the tiny pipeline."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from own_images import with_jsonl

from stages.evaluation import edit_measures as measures
from stages.evaluation.edit_measures import EditContext, mean_distance, measure_blends, measure_change, psnr
from stages.evaluation.edit_report import EditsOptions, evaluate_edits
from unclip import UserError
from unclip.edit import defaults

SETTINGS = EditsOptions(
    images=10,
    data=replace(EditsOptions().data, limit=600),
    judge=replace(EditsOptions().judge, steps=20, batch_size=32, warmup=5, evaluate_every=20),
)


@pytest.fixture
def few_steps(monkeypatch):
    """Edits in as few steps as will do."""
    for settings in (defaults.INVERTIBLE, defaults.PAINTING):
        monkeypatch.setitem(settings, "steps", 3)
    monkeypatch.setattr(measures, "STEPS", 3)
    monkeypatch.setattr(measures, "VARIATIONS", 2)
    monkeypatch.setattr(measures, "FRAMES", 3)


def test_signal_to_noise_and_spread_are_what_they_are_defined_as():
    one = np.zeros((2, 4, 4, 1), np.uint8)
    other = one + np.array([0, 51], np.uint8).reshape(2, 1, 1, 1)
    assert psnr(one, other).tolist() == pytest.approx([10 * math.log10(255**2 * 16), 20 * math.log10(5)])
    assert mean_distance(np.stack([one[0], one[0] + 3, one[0] + 3])) == pytest.approx(2 / 3 * 4 * 3)


def test_a_report_holds_every_measure_and_is_the_same_again(trained, few_steps, tmp_path):
    reports = [evaluate_edits(replace(SETTINGS, checkpoint=trained.folder, out=tmp_path / str(i))) for i in range(2)]
    assert reports[0] == reports[1]
    assert json.loads((tmp_path / "0" / "edits.json").read_text()) == json.loads(json.dumps(reports[0]))
    figures = reports[0]["figures"]
    assert len(figures) == 17
    for name in (
        "inversion",
        "variations",
        "blend",
        "change, dark to light",
        "change, narrow to wide",
        "mix",
        "inpaint",
    ):
        assert any(row.startswith(name) for row in figures), name
    assert figures["inpaint, lower half: outside identical"]["value"] == 1
    text = (tmp_path / "0" / "edits.md").read_text()
    assert all(name in text for name in figures)
    arrays = np.load(tmp_path / "0" / "edits.npz")
    assert arrays["blends"].shape[1:] == (3, 28, 28, 1)
    assert np.array_equal(arrays["paintings"][:, :14], arrays["real"][:, :14])
    assert not np.array_equal(arrays["paintings"][:, 14:], arrays["real"][:, 14:])


def test_an_edit_that_does_nothing_obeys_nothing_and_keeps_the_class(tiny, splits, monkeypatch):
    """By a classifier that knows the true classes."""
    test = splits["test"].first(300)
    known = {image.numpy().tobytes(): label for image, label in zip(test.images, test.labels.tolist(), strict=True)}
    context = EditContext(tiny, None, test, torch.arange(20), 0)

    def classify(self, images):
        return torch.tensor([known[image.tobytes()] for image in images.reshape(-1, 28 * 28)]).view(images.shape[:-3])

    monkeypatch.setattr(EditContext, "classify", classify)
    monkeypatch.setattr(measures.edit, "change", lambda pipe, images, *a, **k: images[:, None])
    for measure in (0, 1):
        obeyed, kept = (row.figure for row in measure_change(context, measure)[0])
        assert (obeyed["value"], kept["value"], kept["n"]) == (0, 1, 20)
    halves = lambda pipe, a, b, frames: np.stack([*[a] * (frames - 2), *[b] * 2], axis=1)  # noqa: E731
    monkeypatch.setattr(measures.edit, "blend", halves)
    monkeypatch.setattr(measures.edit, "invert", lambda pipe, images, steps: images)
    monkeypatch.setattr(measures.edit, "reconstruct", lambda pipe, images: images)
    ends, steady, right = (row.figure for row in measure_blends(context)[0])
    assert (ends["value"] > 70, steady["value"], right["value"]) == (True, 1, 1)


def test_data_without_classes_is_refused_in_one_line(trained, own_caches, tmp_path):
    with_jsonl(tmp_path / "squares", 60)
    data = replace(SETTINGS.data, source=str(tmp_path / "squares"), limit=None)
    with pytest.raises(UserError, match="has no images of classes"):
        evaluate_edits(replace(SETTINGS, checkpoint=trained.folder, data=data))
