"""Whatever happens to a training from outside, nothing is lost and nothing wrong is let in."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy
from faults import die_at, flip, forked, listen, one_line, outcome, poisoned, quiet_threads
from runs import break_off
from toy import OFTEN_SAVED, Line, LineConfig, LineStage

from stages.loop import TrainConfig
from stages.state import open_state
from unclip.errors import UserError
from unclip.store.files import process_is_alive
from unclip.store.lock import only_writer
from unclip.store.manifest import Manifest, read_manifest
from unclip.store.parts import load_part, save_part

ROOT = Path(__file__).resolve().parents[1]
MANY = os.environ.get("TORTURE") == "1"
"""Whether to run the full counts."""


def train(folder: Path, stage: LineStage | None = None, config: TrainConfig = OFTEN_SAVED) -> Manifest:
    return toy.train(folder, stage, config)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    quiet_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def expected(undisturbed) -> dict:
    return outcome(undisturbed)


def stopped_after(folder: Path, step: int) -> None:
    """A training that was broken off after a step at which the state is saved."""
    with pytest.raises(KeyboardInterrupt):
        train(folder, break_off(LineStage(), "batch", step + 1))


def finish(folder: Path, expected: dict) -> str:
    """Give the command again. Returns "same", as what it leaves must then be, or its error."""
    try:
        train(folder)
    except UserError as error:
        return str(error)
    assert outcome(folder) == expected
    return "same"


# --- writes can stop anywhere -----------------------------------------------------------------------------------------


def test_a_kill_before_any_change_of_a_file_loses_nothing(tmp_path, expected):
    """At every point at which the training is about to change something on the disk, for one in nine of them here."""
    point, step = 1, 1 if MANY else 9
    while True:
        folder = tmp_path / str(point)

        def work(folder=folder, point=point):
            die_at(point)()
            train(folder)

        status, said = forked(work, tmp_path / "log").wait()
        assert status in (0, -signal.SIGKILL), said
        train(folder)
        assert outcome(folder) == expected, point
        if status == 0:
            break
        point += step
    assert point > 60


def test_a_kill_at_any_moment_loses_nothing(tmp_path, expected, monkeypatch):
    monkeypatch.setenv("SLOWLY", "0.005")
    moments = random.Random(3)
    for trial in range(100 if MANY else 6):
        folder = tmp_path / str(trial)
        child = forked(lambda folder=folder: train(folder), tmp_path / "log")
        time.sleep(moments.uniform(0, 0.35))
        child.kill(signal.SIGKILL)
        child.wait()
        train(folder)
        assert outcome(folder) == expected, trial


def test_weights_wait_until_their_manifest_names_them(tmp_path, monkeypatch):
    model = Line(LineConfig())
    save_part(tmp_path, model, toy.manifest())
    before, _ = load_part(tmp_path, Line)
    old = before.linear.weight.clone()
    with torch.no_grad():
        model.linear.weight += 1
    for step, name in enumerate(("write_manifest", "finish_saving")):  # killed before the manifest, and after it
        with monkeypatch.context() as patch:
            patch.setattr(f"unclip.store.parts.{name}", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                save_part(tmp_path, model, toy.manifest())
        found, manifest = load_part(tmp_path, Line)
        assert torch.equal(found.linear.weight, old + step)
        assert manifest == read_manifest(tmp_path)


# --- everything that is read is verified ------------------------------------------------------------------------------


def test_a_flipped_bit_is_refused_or_mended_and_never_used(tmp_path, expected):
    chance, told = random.Random(5), {}
    for trial in range(150 if MANY else 24):
        folder = tmp_path / str(trial)
        stopped_after(folder, chance.choice((4, 6, 10)))
        paths = [path for path in (folder / "line").rglob("*") if path.suffix in (".safetensors", ".json", ".jsonl")]
        path = sorted(paths)[trial % len(paths)]
        where = flip(path, chance)
        said = (finish_log if path.suffix == ".jsonl" else finish)(folder, expected)
        told.setdefault(path.name, []).append((where, said))
        if said != "same":
            assert str(folder) in said, said
            assert "\n" not in said
    assert all(said == "same" for _, said in told["state.safetensors"]), told["state.safetensors"]
    assert all(said == "same" for _, said in told["metrics.jsonl"])


def finish_log(folder: Path, expected: dict) -> str:
    """A damaged log stops nothing: all but the log is as it would be."""
    train(folder)
    assert {**outcome(folder), "metrics": None} == {**expected, "metrics": None}
    return "same"


def log_lines(folder: Path) -> list[str]:
    return (folder / "line" / "train" / "metrics.jsonl").read_text().splitlines()


def test_damaged_state_falls_back_to_the_one_before_and_says_so(tmp_path, expected, capsys):
    stopped_after(tmp_path, 6)
    state = tmp_path / "line" / "train" / "state.safetensors"
    flip(state, random.Random(0))
    train(tmp_path)
    said = capsys.readouterr().err
    assert f"{state} is damaged" in said
    assert "going on from the one before, of step 4" in said
    assert outcome(tmp_path) == expected


def test_two_damaged_states_are_refused_in_one_line(tmp_path):
    stopped_after(tmp_path, 6)
    for name in ("state", "state-before"):
        flip(tmp_path / "line" / "train" / f"{name}.safetensors", random.Random(0))
    with pytest.raises(
        UserError, match=r"is damaged .* and so is the one before; its best weights are in .* or delete"
    ):
        train(tmp_path)


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"not json\n", b'{"step": "x"}\n', b"[1]\n", b"{" * 5000 + b"\n"])
def test_damaged_log_is_set_aside(damage, tmp_path, expected):
    stopped_after(tmp_path, 6)
    log = tmp_path / "line" / "train" / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + damage + b"".join(lines[1:]))
    train(tmp_path)
    aside = (log.parent / "metrics-damaged.jsonl").read_bytes()
    assert aside.startswith(damage)
    assert {**outcome(tmp_path), "metrics": None} == {**expected, "metrics": None}


# --- signals ----------------------------------------------------------------------------------------------------------

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signal_finishes_the_step_saves_it_and_says_how_to_go_on(number, tmp_path, expected, monkeypatch):
    monkeypatch.setenv("SLOWLY", "0.02")
    child = forked(lambda: train(tmp_path / "run"), tmp_path / "log")
    child.said("line 3/12")
    child.kill(number)
    status, said = child.wait()
    assert status == SIGNALS[number]
    last = said.splitlines()[-1]
    assert f"stopped by {number.name} after step" in last
    assert "the same command again goes on: " in last
    assert "Traceback" not in said
    step = int(last.split("after step ")[1].split(",")[0])
    assert open_state(tmp_path / "run" / "line" / "train" / "state.safetensors")[1].step == step
    train(tmp_path / "run")
    assert outcome(tmp_path / "run") == expected


def test_second_signal_leaves_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOWLY", "2")
    child = forked(lambda: train(tmp_path / "run"), tmp_path / "log")
    child.said("12 steps")
    time.sleep(0.2)
    child.kill(signal.SIGTERM)
    time.sleep(0.2)
    began = time.perf_counter()
    child.kill(signal.SIGINT)
    status, said = child.wait()
    assert status == 130
    assert time.perf_counter() - began < 1
    assert one_line(said, "stopped by SIGINT; the same command again goes on")


def test_signals_at_any_moment_of_a_training_lose_nothing(tmp_path, expected, monkeypatch):
    monkeypatch.setenv("SLOWLY", "0.005")
    moments = random.Random(4)
    for trial in range(50 if MANY else 6):
        folder, number = tmp_path / str(trial), moments.choice(list(SIGNALS))
        child = forked(lambda folder=folder: train(folder), tmp_path / f"log{trial}")
        time.sleep(moments.uniform(0.02, 0.35))
        child.kill(number)
        status, said = child.wait()
        assert status in (0, SIGNALS[number]), said
        assert "Traceback" not in said
        if status:
            assert f"stopped by {number.name}" in said.splitlines()[-1]
        train(folder)
        assert outcome(folder) == expected, trial


def test_signals_during_imports_give_one_line(tmp_path):
    programs = {
        "train_clip.py": ["--out", tmp_path / "x"], "sample.py": ["a bag", "--out", tmp_path / "y"],
        "train_decoder.py": ["--out", tmp_path / "z"],
    }  # fmt: skip
    runs = []
    for (program, options), number in zip(programs.items(), SIGNALS, strict=True):
        command = [sys.executable, ROOT / program, *options]
        runs.append(
            (subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=listen), number)
        )
    time.sleep(1.0)
    for run, number in runs:
        run.send_signal(number)
    for run, number in runs:
        _, said = run.communicate(timeout=60)
        assert run.returncode == SIGNALS[number], said
        assert said.decode().startswith(f"stopped by {number.name}; the same command again goes on: ")
        assert said.count(b"\n") == 1


# --- numbers that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "term"),
    [(math.nan, "loss"), (math.inf, "loss"), (1e37, "gradient norm")],
    ids=["nan", "inf", "overflow"],
)
def test_what_is_not_finite_is_named_and_never_saved(factor, term, tmp_path):
    with pytest.raises(UserError, match=rf"^line: the {term} is (nan|inf) at step 7; .*--resume-with .* 0\.005$"):
        train(tmp_path, poisoned(LineStage(), 7, factor))
    tensors, progress = open_state(tmp_path / "line" / "train" / "state.safetensors")
    assert progress.step == 6
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert load_part(tmp_path / "line", Line)[0].linear.weight.isfinite().all()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    stage = LineStage()

    def poison(batch):
        if stage.objective.calls == 8:
            stage.model.linear.weight.data[0, 0] = math.inf
        return {}

    stage.figures = poison
    with pytest.raises(UserError, match=r"the model\.linear\.weight is not finite at step 8; the last saved state"):
        train(tmp_path, stage)
    assert open_state(tmp_path / "line" / "train" / "state.safetensors")[1].step == 6


def test_before_anything_is_saved_the_advice_is_to_start_anew(tmp_path):
    with pytest.raises(UserError, match=r"at step 1; nothing is saved yet: start anew .*--train\.lr 0\.005$"):
        train(tmp_path, poisoned(LineStage(), 1, math.nan))
    train(tmp_path, config=replace(OFTEN_SAVED, lr=0.005))


def test_advice_works_and_the_manifest_records_it(tmp_path, expected):
    with pytest.raises(UserError):
        train(tmp_path, poisoned(LineStage(), 7, math.nan))
    manifest = train(tmp_path, config=replace(OFTEN_SAVED, resume_with=0.005))
    assert manifest.complete
    assert manifest.training["resumed_with"] == [[6, 0.005]]
    rates = [line["lr"] for line in map(json.loads, log_lines(tmp_path)) if "lr" in line]
    usual = [line["lr"] for line in expected["metrics"] if "lr" in line]
    assert rates[:4] == usual[:4]
    assert rates[4:] == pytest.approx([rate / 10 for rate in usual[4:]])
    assert train(tmp_path) == manifest


def test_new_rate_stays_when_the_run_is_interrupted_again(tmp_path):
    stopped_after(tmp_path / "a", 4)
    with pytest.raises(UserError):
        train(tmp_path / "a", poisoned(LineStage(), 5, math.nan), replace(OFTEN_SAVED, resume_with=0.02))
    once = train(tmp_path / "a")
    stopped_after(tmp_path / "b", 4)
    assert train(tmp_path / "b", config=replace(OFTEN_SAVED, resume_with=0.02)).sha256 == once.sha256
    assert once.training["resumed_with"] == [[4, 0.02]]


def test_a_new_rate_needs_a_state(tmp_path):
    with pytest.raises(UserError, match=r"--resume-with .* saved state, but there is none; set --train\.lr"):
        train(tmp_path, config=replace(OFTEN_SAVED, resume_with=0.02))


# --- one writer -------------------------------------------------------------------------------------------------------


def test_second_writer_is_told_who_holds_the_folder(tmp_path, monkeypatch, expected):
    monkeypatch.setenv("SLOWLY", "0.1")
    child = forked(lambda: train(tmp_path / "run"), tmp_path / "log")
    child.said("line 4/12: validation")
    child.said("line 6/12")
    with pytest.raises(UserError, match=rf"is being written by process {child.process} on \S+ since \d{{4}}-"):
        train(tmp_path / "run")
    load_part(tmp_path / "run" / "line", Line)  # reading goes on
    child.kill(signal.SIGKILL)
    child.wait()
    monkeypatch.setenv("SLOWLY", "0")
    train(tmp_path / "run")  # a dead holder's is taken over
    assert outcome(tmp_path / "run") == expected


def test_of_two_writers_at_once_one_trains(tmp_path, expected):
    for trial in range(30 if MANY else 4):
        folder = tmp_path / str(trial)
        children = [forked(lambda folder=folder: train(folder), tmp_path / f"log{trial}{i}") for i in range(2)]
        ends = [child.wait() for child in children]
        assert 0 in [status for status, _ in ends]
        for status, said in ends:
            assert status == 0 or one_line(said, f"error: {folder / 'line' / 'train'} is being written by"), said
        assert outcome(folder) == expected


def test_lock_is_given_back(tmp_path):
    for _ in range(2):
        with only_writer(tmp_path):
            assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
        assert (tmp_path / "lock").read_text() == ""
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path):
        1 / 0  # noqa: B018
    assert process_is_alive(os.getpid())


def test_child_that_outlives_the_holder_does_not_keep_the_lock(tmp_path):
    """Such as a reader of a training that was killed, which notices that some seconds later."""
    with only_writer(tmp_path):
        child = forked(lambda: time.sleep(60), tmp_path / "log")
    with only_writer(tmp_path):
        child.kill(signal.SIGKILL)
    child.wait()


# --- a resume says what it does ---------------------------------------------------------------------------------------


def test_other_number_of_threads_is_said(tmp_path, capsys):
    stopped_after(tmp_path, 6)
    torch.set_num_threads(2)
    train(tmp_path)
    torch.set_num_threads(1)
    said = capsys.readouterr().err
    assert said.count("rounding differs") == 1
    assert "with 2 threads, 1 rank (threads of each rank), after 1 thread, 1 rank" in said


def test_intervals_may_change(tmp_path, expected):
    stopped_after(tmp_path, 6)
    train(tmp_path, config=replace(OFTEN_SAVED, save_every=5, log_every=1, preview_every=12))
    assert outcome(tmp_path)["weights"] == expected["weights"]


def test_more_steps_are_refused_with_what_is_meant(undisturbed, expected):
    with pytest.raises(UserError, match=r"holds a run with train\.steps = 12, not 20; .*--init-from "):
        train(undisturbed, config=replace(OFTEN_SAVED, steps=20))
    with pytest.raises(UserError, match=r"holds a run with train\.lr = 0\.05, not 0\.01; .*--resume-with 0\.01"):
        train(undisturbed, config=replace(OFTEN_SAVED, lr=0.01))
    assert outcome(undisturbed) == expected


def test_settings_are_known_without_their_record(tmp_path, expected):
    stopped_after(tmp_path / "a", 2)  # a state, and no weights yet
    (tmp_path / "a" / "line" / "train" / "run.json").unlink()
    with pytest.raises(UserError, match="holds the state of a run with other settings"):
        train(tmp_path / "a", config=replace(OFTEN_SAVED, lr=0.01))
    train(tmp_path / "a")
    assert outcome(tmp_path / "a") == expected
