"""Looking at a source before training on it."""

import pytest
from conftest import assert_one_error_line, run_python
from own_images import fill, with_faults, with_jsonl, with_npz
from PIL import Image

from data.inspect import InspectOptions, inspect
from unclip.errors import UserError

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
    assert "duplicates: 1 images" in said
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


def test_inspect_from_the_command_line(tmp_path):
    with_npz(tmp_path / "sprites.npz")
    done = run_python("-m", "data.inspect", tmp_path / "sprites.npz", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "40 images with captions" in done.out
    assert_one_error_line(run_python("-m", "data.inspect", tmp_path / "missing"), "there is no data set")
