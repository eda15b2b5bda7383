"""Curves of a training, curves of several runs in one picture, and TensorBoard's files."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import assert_one_error_line, run_program
from PIL import Image
from runs import break_off
from toy import SETTINGS, LineStage, train

from stages import log
from stages.curves import __main__ as curves
from stages.curves.__main__ import CurvesOptions
from stages.curves.drawing import draw_curves, figure_series, panel_title, read_metrics
from stages.loop import TrainConfig
from unclip.errors import UserError


@pytest.fixture
def drawn(monkeypatch) -> list[dict[str, tuple]]:
    """The lines of each picture that is drawn: {title: {label: (steps, values)}}."""
    import matplotlib.figure

    pictures = []

    def watched(*arguments):
        figures = []
        init = matplotlib.figure.Figure.__init__
        with monkeypatch.context() as patch:
            patch.setattr(
                matplotlib.figure.Figure,
                "__init__",
                lambda self, *a, **k: [figures.append(self), init(self, *a, **k)][1],
            )
            draw_curves(*arguments)
        pictures.append(
            {
                axes.get_title(): {line.get_label(): tuple(map(list, line.get_data())) for line in axes.get_lines()}
                for axes in figures[0].axes
            }
        )

    monkeypatch.setattr(log, "draw_curves", watched)
    monkeypatch.setattr(curves, "draw_curves", watched)
    return pictures


def test_each_validation_draws_the_curves_of_all_that_was_logged(tmp_path, drawn):
    train(tmp_path)
    assert [picture["loss"]["loss"][0] for picture in drawn] == [[2, 4], [2, 4, 6, 8], [2, 4, 6, 8, 10, 12]]
    lines = read_metrics(tmp_path / "line" / "train" / "metrics.jsonl")
    assert list(drawn[-1]) == ["loss", "error", "learning rate", "images per second"]
    assert drawn[-1]["error"]["validation error"] == (
        [4, 8, 12],
        [line["validation/error"] for line in lines if "validation/error" in line],
    )
    assert drawn[-1]["learning rate"]["lr"][1] == [line["lr"] for line in lines if "lr" in line]
    picture = np.asarray(Image.open(tmp_path / "line" / "train" / "curves.png").convert("RGB"))
    assert (picture != 255).any(axis=2).mean() > 0.01


def test_a_run_that_went_on_draws_its_curves_from_the_beginning(tmp_path, drawn):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, break_off(LineStage(), "batch", 11))
    train(tmp_path)
    assert drawn[-1]["loss"]["loss"][0] == [2, 4, 6, 8, 10, 12]


def test_a_failure_to_draw_stops_no_training(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no font\nand more")

    monkeypatch.setattr(log, "draw_curves", fail)
    assert train(tmp_path).complete
    assert "curves.png is not drawn (no font)" in capsys.readouterr().err


def test_figures_of_a_kind_share_a_panel_and_what_is_not_finite_is_left_out(tmp_path):
    assert panel_title("chance_loss") == panel_title("validation/loss") == "loss"
    assert panel_title("validation/cosine_text") == panel_title("validation/cosine_sample") == "cosine"
    assert panel_title("validation/logit_scale") == "logit scale"
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2, "grad_norm": 1}\n{"step": 2, "loss": NaN}\n[1]\n{"step": 3, "lo')
    assert figure_series(read_metrics(path)) == {"loss": ([1], [2])}
    path.write_text("")
    draw_curves(tmp_path / "empty.png", {"x": read_metrics(path)}, "x")


def test_runs_are_laid_over_each_other_stage_by_stage(tmp_path, drawn):
    for name, steps in (("a", 12), ("b", 8)):
        train(tmp_path / name, config=replace(SETTINGS, steps=steps))
    other = tmp_path / "b" / "decoder" / "train"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    del drawn[:]
    runs = (tmp_path / "a", tmp_path / "b")
    pictures = [tmp_path / "out" / f"{stage}.png" for stage in ("line", "decoder")]
    assert curves.draw_runs(CurvesOptions(runs, tmp_path / "out")) == pictures
    assert {label: steps[-1] for label, (steps, _) in drawn[0]["loss"].items()} == {
        f"{runs[0]}: loss": 12,
        f"{runs[1]}: loss": 8,
    }
    assert drawn[1] == {"loss": {"loss": ([1], [1.0])}}
    stage_and_file = (tmp_path / "a" / "line", tmp_path / "b" / "line" / "train" / "metrics.jsonl")
    curves.draw_runs(CurvesOptions(stage_and_file, tmp_path))
    assert len(drawn[2]["loss"]) == 2


def test_curves_from_the_command_line(tmp_path):
    train(tmp_path / "run")
    done = run_program("-m", "stages.curves", tmp_path / "run", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "out" / "line.png").width > 500
    assert_one_error_line(run_program("-m", "stages.curves", tmp_path / "none"), "none holds no train/metrics.jsonl")


def test_tensorboard_gets_the_figures_and_the_previews(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(SETTINGS, tensorboard=True)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, break_off(LineStage(), "batch", 8), config)  # saved at step 4, logged until 6
    train(tmp_path, config=config)
    events = EventAccumulator(str(tmp_path / "line" / "train" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    lines = read_metrics(tmp_path / "line" / "train" / "metrics.jsonl")
    for name in ("loss", "lr", "validation/error"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert logged == [(step, pytest.approx(value)) for step, value in expected]
    assert [event.step for event in events.Images("preview")] == [6, 12]


def test_without_tensorboard_one_line_says_so_before_any_training(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(UserError, match=r"--train.tensorboard needs .* pip install '.\[tensorboard\]'"):
        TrainConfig(tensorboard=True)
    TrainConfig()
