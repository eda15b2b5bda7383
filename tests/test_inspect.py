"""Looking at a source before training on it."""

import json
import os
import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_error_line, run_program
from own_images import fill, picture, table, with_faults, with_jsonl, with_npz, with_text_files
from PIL import Image

from configs.clip import PRESETS as CLIP
from configs.decoder import PRESETS as DECODER
from configs.prior import PRESETS as PRIOR
from configs.upsampler import PRESETS as UPSAMPLER
from data.inspect.charts import bin_counts, draw_bars, draw_contact_sheet
from data.inspect.inspection import InspectOptions, inspect_source
from data.inspect.inspection import main as inspect_main
from data.inspect.proposal import (
    RECIPES,
    TRIAL_EVERY,
    TRIAL_STEPS,
    Speed,
    choose_sizes,
    format_command,
    measure_speeds,
    pipeline_folder,
    propose_trainings,
    run_trial,
    training_command,
    unused_folder,
)
from data.problems import Problems
from data.source_config import SourceConfig
from data.sources import image_size, read_listing
from stages.demo.demo import main as demo_main
from unclip.cli import signals
from unclip.cli.options import parse_run
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches", "measured")
SPEEDS = {"clip": Speed(0.14, 10), "prior": Speed(0.16, 12), "decoder": Speed(0.31, 20)}


@pytest.fixture
def measured(monkeypatch) -> None:
    """No training steps are measured in this process, which takes half a minute."""
    monkeypatch.setattr("data.inspect.inspection.measure_speeds", lambda *_: SPEEDS)


def test_inspect_prints_what_a_source_holds_and_what_is_wrong_with_it(tmp_path, capsys):
    with_faults(tmp_path / "images")
    (tmp_path / "images" / "009.png").write_bytes((tmp_path / "images" / "008.png").read_bytes())
    Image.new("L", (30, 10)).save(tmp_path / "images" / "010.png")
    inspect_source(InspectOptions(str(tmp_path / "images"), out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "34 images with captions" in said
    assert "20x20 (31), 30x10 (1)" in said
    assert "RGB (31), L (1)" in said
    assert "duplicates: 1 image equal" in said
    assert "008.png, 009.png" in said
    assert "12 rows of" in said
    assert Image.open(tmp_path / "out" / "grid.png").size[0] > 100


def test_inspect_names_what_is_wrong_where_nothing_can_be_used(tmp_path, capsys):
    fill(tmp_path / "images", 3)
    with pytest.raises(UserError, match="holds nothing that can be used"):
        inspect_source(InspectOptions(str(tmp_path / "images"), out=tmp_path / "out"))
    assert "000.png: has no 000.txt beside it" in capsys.readouterr().out


def test_inspect_of_few_images_and_of_fashion_mnist(tmp_path, capsys):
    with_jsonl(tmp_path / "few", 4)
    inspect_source(InspectOptions(str(tmp_path / "few"), out=tmp_path / "out"))
    inspect_source(InspectOptions("fashion-mnist", out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "4 images with captions" in said
    assert "66374 images with captions" in said
    assert "28x28 (66374)" in said


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".tiff", ".ppm", ".png", ".webp"])
def test_inspect_reads_every_format_to_its_end_while_the_file_is_open(suffix, tmp_path, capsys):
    fill(tmp_path / "images", 33, suffix)
    for number in range(33):
        (tmp_path / "images" / f"{number:03d}.txt").write_text("a square")
    broken = tmp_path / "images" / f"007{suffix}"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    inspect_source(InspectOptions(str(tmp_path / "images"), out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "20x20 (32)" in said
    assert f"007{suffix}: cannot be read as an image" in said


def test_inspect_of_parquet_of_jpeg_bytes(tmp_path, capsys):
    with_text_files(tmp_path / "images", 33)
    files = sorted((tmp_path / "images").glob("*.jpg"))
    columns = {"image": [{"bytes": f.read_bytes(), "path": None} for f in files], "text": ["a square"] * 33}
    type(table(1)).from_dict(columns).to_parquet(tmp_path / "x.parquet")
    inspect_source(InspectOptions(str(tmp_path / "x.parquet"), out=tmp_path / "out"))
    assert "20x20 (33)" in capsys.readouterr().out


def test_inspect_says_the_size_its_cost_and_commands_that_train_on_it(tmp_path, capsys):
    folder = tmp_path / "my drawings"
    folder.mkdir()
    for number in range(100):
        picture(number, (60, 60)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a square")
    inspect_source(InspectOptions(str(folder), out=tmp_path / "out", data=SourceConfig(fit="pad", grey=True)))
    said = capsys.readouterr().out
    assert "training uses 60x60 grey images" in said
    assert "4.6 times as long as at 28x28, a quarter of that with --data.size 30" in said
    assert "clip 0.14 s, prior 0.16 s, decoder 0.31 s" in said
    told = said[said.index("python train_clip") :].replace("\\\n", " ").splitlines()
    lines = [shlex.split(line) for line in told]
    assert [line[:2] for line in lines] == [["python", f"train_{stage}.py"] for stage in SPEEDS]
    for line in lines:
        assert line[line.index("--out") + 1] == "checkpoints/my-drawings"
        source = ["--data", str(folder), "--data.size", "60", "--data.fit", "pad", "--data.grey"]
        assert line[line.index("--data") :][:7] == source


@pytest.mark.parametrize(
    ("sides", "size", "expected"),
    [
        ([60] * 100, None, (60, 1)),
        ([63] * 100, None, (60, 1)),
        ([40, 50] * 50, None, (32, 1)),  # not enlarged to 60
        ([64] * 90 + [48] * 10, None, (32, 2)),
        ([64] * 89 + [47] * 11, None, (60, 1)),
        ([127] * 100, None, (32, 2)),
        ([128] * 100, None, (32, 4)),
        ([96] * 40 + [200] * 60, None, (32, 4)),
        ([300] * 95 + [40] * 5, None, (32, 4)),
        ([300] * 85 + [40] * 15, None, (32, 1)),  # too many would be blurred
        ([64] * 100, 32, (32, 2)),
        ([128] * 100, 64, (64, 2)),
        ([256] * 100, 64, (64, 4)),
        ([128] * 100, 100, (60, 1)),
    ],
)
def test_images_larger_than_the_decoder_s_get_an_upsampler(sides, size, expected):
    assert choose_sizes(sides, size, usual=60) == expected


@pytest.mark.parametrize(("side", "factor"), [(70, 2), (130, 4)])
def test_an_upsampler_is_proposed_where_images_are_large(side, factor, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "icons"
    folder.mkdir()
    for number in range(40):
        picture(number, (side + 10, side)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a square")
    speeds = SPEEDS | {"upsampler": Speed(0.4, 10)}
    measured = {factor: speeds}
    monkeypatch.setattr("data.inspect.inspection.measure_speeds", lambda *given: measured[given[-1]])
    inspect_source(InspectOptions(str(folder), out=tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "training uses 32x32 colour images" in printed
    assert f"an upsampler enlarges them to {32 * factor}x{32 * factor}" in printed
    command = shlex.split(printed[printed.index("python -m stages.train") :].replace("\\\n", " "))
    run = parse_run(UPSAMPLER, "", command[4:])
    assert run.model.network.factor == factor
    assert run.data.size == 32
    assert run.out == Path("checkpoints/icons")


def test_inspect_of_too_few_images_says_how_many_there_are(tmp_path, capsys):
    with_jsonl(tmp_path / "few", 12)
    inspect_source(InspectOptions(str(tmp_path / "few"), out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "it has 12 usable images, but at least 30 are needed: 10 each for training, validation and test" in said
    assert "python train" not in said


@pytest.mark.parametrize(
    ("source", "name"),
    [("fashion-mnist", "run"), ("emoji", "my-emoji"), ("cifar10", "my-cifar10"),
     ("a/Fashion-MNIST", "my-fashion-mnist"), ("b/x.csv", "x"), ("owner/birds", "birds"), ("...", "run")],
)  # fmt: skip
def test_no_training_is_proposed_into_a_pipeline_that_comes_with_the_project(source, name):
    assert pipeline_folder(SourceConfig(source)) == Path("checkpoints") / name


def test_proposed_commands_set_the_options_of_the_source_and_are_what_the_trainers_take():
    config = SourceConfig("x.csv", caption_column="what is seen", class_names="cat,dog", grey=True, limit=50)
    presets = {"clip": CLIP, "prior": PRIOR, "decoder": DECODER}
    for proposal in propose_trainings(50, SPEEDS):
        line = training_command(proposal, config, 32, pipeline_folder(config))
        run = parse_run(presets[proposal.stage], "", line[1:])
        assert SourceConfig(**vars(run.data)) == replace(config, size=32)
        assert (run.train.steps, run.train.batch_size) == (proposal.steps, 32)
        assert run.out == pipeline_folder(config)
        assert run.train.warmup < run.train.steps / 5
        assert run.train.evaluate_every * 4 >= run.train.steps > run.train.evaluate_every * 3
        assert shlex.split(format_command(line).replace("\\\n", " ")) == ["python", *line]


def test_propositions_keep_to_the_budget_and_do_not_pass_over_few_images_too_often():
    fast, slow = ({stage: speed.times(factor) for stage, speed in SPEEDS.items()} for factor in (0.01, 3))
    for speeds in (SPEEDS, fast, slow):
        many, few = propose_trainings(50_000, speeds, 1440), propose_trainings(60, speeds, 1440)
        assert 0.9 * 1440 < sum(one.seconds for one in many) < 1.1 * 1440 or speeds is fast
        for one in many:
            assert one.seconds == one.steps * speeds[one.stage].step + speeds[one.stage].rest
        assert all(a.steps >= b.steps for a, b in zip(many, few, strict=True))
        assert all(one.steps * one.batch_size <= 1.1 * RECIPES[one.stage].epochs * 60 + 6400 for one in few)
        assert [one.batch_size for one in many] == [64, 64, 32]
        assert max(one.batch_size for one in few) <= 60
    assert propose_trainings(50_000, SPEEDS, 3600)[2].steps > propose_trainings(50_000, SPEEDS, 1440)[2].steps
    rest = {stage: speed for stage, speed in SPEEDS.items() if stage != "clip"}
    assert sum(one.seconds for one in propose_trainings(50_000, rest, 1000)) == pytest.approx(1000, abs=20)


def test_speeds_are_those_that_the_trials_log(monkeypatch):
    """The fastest steps count, but not those that warm up.

    All else counts twice: a training validates four times and draws previews twice, a trial does each once.
    """
    clock, trials = [0.0], []

    def trial(command, env, stop):
        trials.append(command)
        folder = Path(command[command.index("--out") + 1])
        assert env["UNCLIP_CACHE"] == str(folder)
        stage = Path(command[1]).stem.removeprefix("train_")
        log = folder / stage / "train" / "metrics.jsonl"
        log.parent.mkdir(parents=True)
        batch = int(command[command.index("--train.batch-size") + 1])
        seconds = [0.3, 0.5, 0.4, 0.5]  # per step, of one group each
        lines = [{"step": 6, "images_per_second": batch / one} for one in seconds] + [
            {"step": TRIAL_STEPS, "validation/loss": 1}
        ]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        clock[0] += TRIAL_EVERY * sum(seconds) + 5
        return 0, ""

    monkeypatch.setattr("data.inspect.proposal.run_trial", trial)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    speeds = measure_speeds(SourceConfig("x"), 32, 3200, 1.5)
    assert [speed.step for speed in speeds.values()] == pytest.approx([0.4] * 3)
    embedding = 3200 / 64 * 0.4
    assert [speed.rest for speed in speeds.values()] == pytest.approx([11.5, 11.5 + embedding, 11.5])
    assert all(command[command.index("--data.limit") + 1] == "320" for command in trials)


def test_a_signal_ends_a_trial_too():
    stop = signals.Stop()
    stop.number = signal.SIGTERM
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert run_trial(sleeping, dict(os.environ), stop) == (-signal.SIGKILL, "")


def test_a_trial_that_fails_says_why(tmp_path):
    with_npz(tmp_path / "x.npz")
    with pytest.raises(UserError, match=r"a trial of the clip on this data failed: --data.root has no meaning"):
        measure_speeds(SourceConfig(str(tmp_path / "x.npz"), root=tmp_path), 20, 20, 0.0)


def test_contact_sheet_is_compact_and_shows_each_image_once():
    images = [np.asarray(picture(number, (32, 32))) for number in range(20)]
    sheet = np.asarray(draw_contact_sheet(images, ["a very long caption that takes several lines"] * 20))
    assert sheet.shape[1] > sheet.shape[0]
    for image in images:
        assert (sheet == image[0, 0]).all(axis=2).sum() == 128**2, "enlarged fourfold"
    alone = draw_contact_sheet([np.zeros((8, 8, 1), np.uint8)], [""])
    assert alone.size[0] < 200


def test_bars_are_as_long_as_their_counts():
    picture = np.asarray(draw_bars("title", [("a", 100), ("b", 25), ("x" * 99, 0)]))
    blue = (picture == (70, 110, 170)).all(axis=2)
    rows = blue.sum(axis=1)
    assert sorted({int(n) for n in rows if n}) == pytest.approx([1, 65, 260], abs=1)
    assert bin_counts([1, 1, 3]) == [("1", 2), ("2", 0), ("3", 1)]
    assert bin_counts(list(range(24))) == [(f"{n} - {n + 1}", 2) for n in range(0, 24, 2)]


@pytest.mark.parametrize(
    ("sizes", "fit", "expected"),
    [
        ([(32, 32)], "crop", 32),
        ([(40, 24)], "crop", 24),
        ([(40, 24)], "pad", 40),
        ([(32, 32), (32, 31)], "crop", 64),
        ([(65, 65)], "crop", 64),
    ],
)
def test_images_of_one_size_up_to_64_are_used_at_that_size(sizes, fit, expected, tmp_path):
    for number in range(12):
        picture(number, sizes[number % len(sizes)]).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a square")
    (tmp_path / "0.png").write_bytes(b"broken")
    config = SourceConfig(str(tmp_path), fit=fit)
    assert image_size(config, read_listing(config, Problems("x"))) == expected


def test_inspect_from_the_command_line(tmp_path):
    with_npz(tmp_path / "sprites.npz", 20)
    done = run_program("-m", "data.inspect", tmp_path / "sprites.npz", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "20 images with captions" in done.out
    assert "cannot be trained on" in done.out
    assert_one_error_line(run_program("-m", "data.inspect", tmp_path / "missing"), "there is no data set")


def test_two_sources_are_refused(tmp_path):
    with_npz(tmp_path / "x.npz", 20)
    for given in (["--data", "emoji"], ["--data=fashion-mnist"]):
        for main in (inspect_main, demo_main):
            with pytest.raises(UserError, match=r"two sources are named, .*x.npz and --data .*; leave --data out"):
                main([str(tmp_path / "x.npz"), *given])


def test_no_training_is_proposed_into_a_folder_with_a_pipeline(tmp_path):
    folder = tmp_path / "birds"
    for expected in ("birds", "birds-2", "birds-3"):
        assert unused_folder(folder).name == expected
        (unused_folder(folder) / "clip").mkdir(parents=True)
