"""Looking at a source before training on it."""

import shlex
from dataclasses import dataclass, replace

import numpy as np
import pytest
from conftest import assert_one_error_line, run_python
from own_images import fill, picture, table, with_faults, with_jsonl, with_npz, with_text_files
from PIL import Image

from data.charts import bars, binned, contact_sheet
from data.inspect import InspectOptions, inspect
from data.proposal import commands, propose, seconds_per_step
from data.records import Problems
from data.sources import SourceConfig, image_size, read
from unclip import cli
from unclip.errors import UserError


@dataclass
class Trainer:
    data: SourceConfig


pytestmark = pytest.mark.usefixtures("own_caches")


def test_inspect_prints_what_a_source_holds_and_what_is_wrong_with_it(tmp_path, capsys):
    with_faults(tmp_path / "images")
    (tmp_path / "images" / "009.png").write_bytes((tmp_path / "images" / "008.png").read_bytes())
    Image.new("L", (30, 10)).save(tmp_path / "images" / "010.png")
    inspect(InspectOptions(str(tmp_path / "images"), out=tmp_path / "out"))
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
        inspect(InspectOptions(str(tmp_path / "images"), out=tmp_path / "out"))
    assert "000.png: has no 000.txt beside it" in capsys.readouterr().out


def test_inspect_of_few_images_and_of_fashion_mnist(tmp_path, capsys):
    with_jsonl(tmp_path / "few", 4)
    inspect(InspectOptions(str(tmp_path / "few"), out=tmp_path / "out"))
    inspect(InspectOptions("fashion-mnist", out=tmp_path / "out"))
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
    inspect(InspectOptions(str(tmp_path / "images"), out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "20x20 (32)" in said
    assert f"007{suffix}: cannot be read as an image" in said


def test_inspect_of_parquet_of_jpeg_bytes(tmp_path, capsys):
    with_text_files(tmp_path / "images", 33)
    files = sorted((tmp_path / "images").glob("*.jpg"))
    columns = {"image": [{"bytes": f.read_bytes(), "path": None} for f in files], "text": ["a square"] * 33}
    type(table(1)).from_dict(columns).to_parquet(tmp_path / "x.parquet")
    inspect(InspectOptions(str(tmp_path / "x.parquet"), out=tmp_path / "out"))
    assert "20x20 (33)" in capsys.readouterr().out


def test_inspect_says_the_size_its_cost_and_commands_that_train_on_it(tmp_path, capsys):
    folder = tmp_path / "my drawings"
    folder.mkdir()
    for number in range(100):
        picture(number, (60, 60)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a square")
    inspect(InspectOptions(str(folder), out=tmp_path / "out", data=SourceConfig(fit="pad", grey=True)))
    said = capsys.readouterr().out
    assert "training uses 60x60 grey images" in said
    assert "4.6 times as long as at 28x28, a quarter of that with --data.size 30" in said
    lines = [shlex.split(line) for line in said.splitlines() if line.startswith("  python ")]
    assert [line[1] for line in lines] == ["train_clip.py", "train_prior.py", "train_decoder.py"]
    for line in lines:
        assert line[line.index("--out") + 1] == "checkpoints/my-drawings"
        assert line[line.index("--data") + 1 :][:6] == [
            str(folder),
            "--data.size",
            "60",
            "--data.fit",
            "pad",
            "--data.grey",
        ]


def test_inspect_of_too_few_images_says_how_many_there_are(tmp_path, capsys):
    with_jsonl(tmp_path / "few", 12)
    inspect(InspectOptions(str(tmp_path / "few"), out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "it has 12 usable images, but at least 30 are needed: 10 each for training, validation and test" in said
    assert "python train" not in said


def test_proposed_commands_set_the_options_of_the_source(monkeypatch):
    config = SourceConfig("x.csv", caption_column="what is seen", class_names="cat,dog", grey=True, limit=50)
    line = shlex.split(commands(config, 32, propose(50, seconds_per_step(32)))[0])
    monkeypatch.setattr("sys.argv", ["x", *line[line.index("--data") : line.index("--train.steps")]])
    assert cli.parse(Trainer, "").data == replace(config, size=32)


def test_propositions_keep_to_the_budget_and_do_not_pass_over_few_images_too_often():
    for seconds in (seconds_per_step(28), seconds_per_step(64), {"clip": 1e-3, "prior": 1e-3, "decoder": 1e-2}):
        many, few = propose(50_000, seconds), propose(60, seconds)
        assert sum(one.seconds for one in many) < 1.1 * 30 * 60
        assert all(one.seconds == one.steps * seconds[one.stage] for one in many)
        assert all(a.steps >= b.steps for a, b in zip(many, few, strict=True))
        assert [one.batch_size for one in many] == [64, 64, 32]
        assert max(one.batch_size for one in few) <= 60
    assert propose(50_000, seconds_per_step(28), budget=3600)[2].steps > propose(50_000, seconds_per_step(28))[2].steps


def test_contact_sheet_is_compact_and_shows_each_image_once():
    images = [np.asarray(picture(number, (32, 32))) for number in range(20)]
    sheet = np.asarray(contact_sheet(images, ["a very long caption that takes several lines"] * 20))
    assert sheet.shape[1] > sheet.shape[0]
    for image in images:
        assert (sheet == image[0, 0]).all(axis=2).sum() == 128**2, "enlarged fourfold"
    alone = contact_sheet([np.zeros((8, 8, 1), np.uint8)], [""])
    assert alone.size[0] < 200


def test_bars_are_as_long_as_their_counts():
    picture = np.asarray(bars("title", [("a", 100), ("b", 25), ("x" * 99, 0)]))
    blue = (picture == (70, 110, 170)).all(axis=2)
    rows = blue.sum(axis=1)
    assert sorted({int(n) for n in rows if n}) == pytest.approx([1, 65, 260], abs=1)
    assert binned([1, 1, 3]) == [("1", 2), ("2", 0), ("3", 1)]
    assert binned(list(range(24))) == [(f"{n} - {n + 1}", 2) for n in range(0, 24, 2)]


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
    assert image_size(config, read(config, Problems("x"))) == expected


def test_inspect_from_the_command_line(tmp_path):
    with_npz(tmp_path / "sprites.npz")
    done = run_python("-m", "data.inspect", tmp_path / "sprites.npz", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "40 images with captions" in done.out
    assert_one_error_line(run_python("-m", "data.inspect", tmp_path / "missing"), "there is no data set")
