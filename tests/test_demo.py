"""make demo DATA=...: all of it on a folder of images, with the smallest models and a few steps."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, edit, files_under, run_program
from own_images import with_jsonl
from PIL import Image
from small_pipeline import build

from data.inspect import proposal
from data.provenance import describe_source
from data.source_config import SourceConfig
from data.sources import load_splits
from data.variety import choose_varied
from stages.demo import demo
from unclip import UnCLIP
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches")
STEPS = 12
STAGES = ("clip", "prior", "decoder")


def run_here(arguments: list[str]) -> None:
    """Stands for `demo.run_program`."""
    done = run_program(ROOT / arguments[0], *arguments[1:], cwd=Path.cwd())
    assert done.code == 0, done.err
    print(done.out)


def run_trial_here(command: list[str], environment: dict[str, str], _) -> tuple[int, str]:
    """Stands for `proposal.run_trial`."""
    done = run_program(*command[1:], cwd=Path.cwd(), **environment)
    return done.code, done.err


def test_demo_looks_measures_trains_and_draws(tmp_path, monkeypatch, capfd):
    with_jsonl(tmp_path / "My Squares", 60)
    monkeypatch.chdir(tmp_path)
    trainer_command = proposal.trainer_command
    monkeypatch.setattr(proposal, "trainer_command", lambda *given: [*trainer_command(*given), "--preset", "tiny"])
    monkeypatch.setattr(proposal, "LEAST_STEPS", STEPS)
    monkeypatch.setattr(proposal, "run_trial", run_trial_here)
    monkeypatch.setattr(demo, "run_program", run_here)
    monkeypatch.setattr(demo, "BUDGET", 1)
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    demo.run_demo(demo.DemoOptions("My Squares"))
    printed = capfd.readouterr().out
    cached = {name.split("/")[0] for name in files_under(tmp_path / "cache")}
    assert printed.index("60 images with captions") < printed.index("clip in checkpoints/my-squares/clip")
    assert "Look at outputs/demo.png" in printed
    out = tmp_path / "checkpoints" / "my-squares"
    assert 0 < len(cached) <= 2, "none of the trials"
    for stage in STAGES:
        assert demo.read_begun_training(out, stage) == proposal.Proposal(stage, STEPS, 32, 0)
        assert (out / stage / "train" / "curves.png").exists()
    captions = (tmp_path / "outputs" / "demo" / "captions.txt").read_text().splitlines()
    [validation] = load_splits(SourceConfig("My Squares"), ["validation"])
    assert captions == choose_varied(validation.captions, 10)
    assert Image.open("outputs/demo.png").size == Image.open("outputs/demo/grid.png").size
    assert UnCLIP.from_pretrained(out)("a red square").images.shape == (1, 20, 20, 3)


def test_what_has_begun_goes_on_as_planned_and_the_rest_takes_what_is_left_or_most_of_what_it_had(
    tmp_path, monkeypatch
):
    clock, ran = [0.0], []
    speeds = {stage: proposal.Speed(0.1, 10) for stage in STAGES}

    def run_program(arguments):
        ran.append(arguments)
        clock[0] += 500  # slower than was measured

    monkeypatch.setattr(demo, "run_program", run_program)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    begun = proposal.Proposal("clip", 777, 16, 0)
    monkeypatch.setattr(demo, "read_begun_training", lambda out, stage: begun if stage == "clip" else None)
    demo.train_stages(demo.Measurements(100_000, 32, speeds), SourceConfig("x"), tmp_path)
    steps = [int(line[line.index("--train.steps") + 1]) for line in ran]
    assert [line[0] for line in ran] == [f"train_{stage}.py" for stage in STAGES]
    assert steps[0] == 777
    prior, decoder = (proposal.RECIPES[stage].share for stage in ("prior", "decoder"))
    assert steps[1] == pytest.approx((demo.BUDGET - 500 - 20) * prior / (prior + decoder) / 0.1, abs=50)
    slower = 500 / (steps[1] * 0.1 + 10)
    first_plan = 10 + (demo.BUDGET - 30) * decoder
    least = demo.LEAST_TIME * first_plan
    assert least > demo.BUDGET - 1000, "what is left is less"
    assert steps[2] == pytest.approx((least - 10 * slower) / (0.1 * slower), abs=50)


def test_the_stages_after_a_slow_one_keep_most_of_the_time_that_they_had_together(tmp_path, monkeypatch):
    clock, steps = [0.0], []
    speeds = {stage: proposal.Speed(0.1, 10) for stage in STAGES}

    def run_program(arguments):
        steps.append(int(arguments[arguments.index("--train.steps") + 1]))
        clock[0] += 900 if len(steps) == 1 else 0

    monkeypatch.setattr(demo, "run_program", run_program)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    demo.train_stages(demo.Measurements(100_000, 32, speeds), SourceConfig("x"), tmp_path)
    clip, prior, decoder = (proposal.RECIPES[stage].share for stage in STAGES)
    slower = 900 / (steps[0] * 0.1 + 10)
    least = demo.LEAST_TIME * (20 + (demo.BUDGET - 30) * (prior + decoder) / (clip + prior + decoder))
    assert least > demo.BUDGET - 900, "what is left is less"
    expected = (least - 20 * slower) * prior / (prior + decoder) / (0.1 * slower)
    assert steps[1] == pytest.approx(expected, abs=50)


def test_a_machine_that_is_idle_again_is_as_fast_as_it_was_measured(tmp_path, monkeypatch):
    clock, steps, left = [0.0], {}, {}
    speeds = {stage: proposal.Speed(0.1, 10) for stage in STAGES}

    def run_program(arguments):
        stage = arguments[0].removeprefix("train_").removesuffix(".py")
        left[stage] = demo.BUDGET - clock[0]
        steps[stage] = int(arguments[arguments.index("--train.steps") + 1])
        clock[0] += (1.5 if stage == "clip" else 1) * (10 + 0.1 * steps[stage])

    monkeypatch.setattr(demo, "run_program", run_program)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    demo.train_stages(demo.Measurements(100_000, 32, speeds), SourceConfig("x"), tmp_path)
    prior, decoder = (proposal.RECIPES[stage].share for stage in ("prior", "decoder"))
    assert steps["prior"] == pytest.approx((left["prior"] - 30) * prior / (prior + decoder) / 0.15, abs=50)
    assert steps["decoder"] == pytest.approx((left["decoder"] - 10) / 0.1, abs=50)


def test_too_few_images_end_the_demo_with_one_line(tmp_path, monkeypatch):
    with_jsonl(tmp_path / "few", 12)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="few has too few images to train on"):
        demo.run_demo(demo.DemoOptions("few"))


def test_a_pipeline_of_other_data_is_refused_before_anything_is_measured(tmp_path):
    folder, mine, other = build(tmp_path / "own"), str(tmp_path / "mine"), str(tmp_path / "other")
    edit(folder / "clip", provenance=describe_source(SourceConfig(mine), 32))
    with pytest.raises(UserError, match=f"was trained with --data {mine}; this is with --data {other}; choose another"):
        demo.run_demo(demo.DemoOptions(other, out=folder))


PROGRAM = """
import sys, time
from unclip.cli import signals
signals.install()
with signals.postponed() as stop:
    open("started", "w").close()
    while not stop.number:
        time.sleep(0.01)
    time.sleep(0.5)
    open("saved", "w").close()
    stop.number, number = 0, stop.number
sys.exit(128 + number)
"""
PARENT = """
from stages.demo import demo
from unclip.cli import signals
signals.install()
demo.run_program([sys.argv[1]])
print("went on")
"""


def test_a_signal_lets_what_runs_save_and_ends_the_demo(tmp_path):
    (tmp_path / "program.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}")
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PARENT}"
    command = [sys.executable, "-c", path, str(tmp_path / "program.py")]
    parent = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 100
    while not (tmp_path / "started").exists() and time.monotonic() < until:
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    out, err = parent.communicate(timeout=100)
    assert parent.returncode == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert "went on" not in out
    assert "stopped by SIGTERM; the same command again goes on" in err


def test_varied_captions_use_as_many_words_as_they_can():
    colours, shapes = ("red", "green", "blue"), ("circle", "square")
    captions = [f"a {colour} {shape}" for colour in colours for shape in shapes]
    chosen = choose_varied(captions, 3)
    assert {word for caption in chosen for word in caption.split()} == {"a", *colours, *shapes}
    assert sorted(choose_varied(captions, 100)) == sorted(captions)
    assert choose_varied([*captions[:1] * 9, ""], 5) == [captions[0], ""]
    assert choose_varied([], 5) == []
