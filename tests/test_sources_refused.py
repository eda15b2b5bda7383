"""Rows and sources that cannot be used: counted, named, or refused."""

import io
import os

import datasets
import numpy as np
import pytest
from conftest import assert_one_error_line
from own_images import (
    caption,
    everything,
    picture,
    with_csv,
    with_faults,
    with_jsonl,
    with_parquet,
    with_saved,
    with_text_files,
)

from data import paths
from data.caption_values import as_captions
from data.decoding import collect_images
from data.problems import SHOWN, Problems
from data.source_config import SourceConfig
from data.sources import load_splits, read_listing
from data.splits import SPLITS, split_records
from stages.data_config import DataConfig
from stages.identity import settings
from stages.prior import PriorRun
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches")


def test_rows_that_cannot_be_used_are_counted_named_and_written_down(tmp_path, capsys):
    faults = with_faults(tmp_path / "images")
    found = everything(tmp_path / "images")
    assert set(found) == {caption(n) for n in range(8, 40)}
    said = capsys.readouterr().out
    assert f"{len(faults)} rows of {tmp_path / 'images'} cannot be used" in said
    assert sum(line.startswith("  ") and ": " in line for line in said.splitlines()) == SHOWN
    (file,) = (paths.CACHE / "problems").iterdir()
    assert str(file) in said
    lines = file.read_text().splitlines()
    assert len(lines) == len(faults)
    for name, why in faults.items():
        assert any(line.startswith(f"{name}: ") and why in line for line in lines), name


def test_strict_refuses_rows_that_cannot_be_used(tmp_path):
    with_faults(tmp_path / "images")
    with pytest.raises(UserError, match=r"12 rows of .* cannot be used, the first is metadata\.jsonl:4: is not JSON"):
        load_splits(SourceConfig(str(tmp_path / "images"), strict=True), SPLITS)
    with_jsonl(tmp_path / "clean", 40)
    assert sum(map(len, load_splits(SourceConfig(str(tmp_path / "clean"), strict=True), SPLITS))) == 40


def test_pairs_with_faults(tmp_path):
    with_text_files(tmp_path, 30)
    (tmp_path / "000.txt").unlink()
    (tmp_path / "001.txt").write_text(" \n\n")
    (tmp_path / "002.jpg").unlink()
    (tmp_path / "003.txt").write_bytes(b"\xff\xfe\xfa")
    problems = Problems("x")
    listing = read_listing(SourceConfig(str(tmp_path)), problems)
    assert len(listing.records) == 26
    assert {name for name, _ in problems.rows} == {"000.jpg", "001.jpg", "002.txt", "003.jpg"}


def test_tables_with_faults(tmp_path):
    features = datasets.Features({"image": datasets.Value("binary"), "text": datasets.Value("string")})
    file = io.BytesIO()
    picture(1).save(file, "PNG")
    good = file.getvalue()
    images = [good] * 40 + [None, b"broken", good, good]
    text = [caption(n) for n in range(40)] + ["a", "b", None, " "]
    datasets.Dataset.from_dict({"image": images, "text": text}, features=features).to_parquet(tmp_path / "a.parquet")
    problems = Problems("x")
    listing = read_listing(SourceConfig(str(tmp_path / "a.parquet")), problems)
    assert [name for name, _ in problems.rows] == ["train 42", "train 43"]
    images, kept = collect_images("x", listing.records, 8, 3, "crop", problems)
    assert len(images) == len(kept) == 40
    assert {name for name, _ in problems.rows} == {"train 40", "train 41", "train 42", "train 43"}


def test_strict_looks_at_every_split(tmp_path):
    with_text_files(tmp_path, 400)
    in_test = split_records(read_listing(SourceConfig(str(tmp_path)), Problems("x")).records, "test")[0].name
    (tmp_path / in_test).write_bytes(b"no image")
    assert [len(part) for part in load_splits(SourceConfig(str(tmp_path)), ["train", "validation"])] == [360, 20]
    with pytest.raises(UserError, match=f"1 row of .* the first is {in_test}: cannot be read as an image"):
        load_splits(SourceConfig(str(tmp_path), strict=True), ["train", "validation"])


def test_a_row_is_counted_once_though_two_splits_are_the_same(tmp_path, capsys):
    for split in ("train", "test"):
        with_text_files(tmp_path / split, 12)
    (tmp_path / "test" / "003.jpg").write_bytes(b"no image")
    load_splits(SourceConfig(str(tmp_path)), SPLITS)
    assert "1 row of" in capsys.readouterr().out


def test_what_is_no_unicode_is_named_and_hurts_nothing_else(tmp_path, capsys):
    with_jsonl(tmp_path / "jsonl", 40)
    table = tmp_path / "jsonl" / "metadata.jsonl"
    table.write_text(table.read_text().replace(f'{caption(3)}"', 'half an emoji \\ud83d"'))
    assert len(everything(tmp_path / "jsonl")) == 39
    assert "metadata.jsonl:4 (003.png): has no caption that is text" in capsys.readouterr().out
    with_csv(tmp_path / "csv", 40)
    table = tmp_path / "csv" / "metadata.csv"
    table.write_bytes(table.read_bytes().replace(f'{caption(3)}"'.encode(), b'caf\xe9"'))
    assert len(everything(tmp_path / "csv")) == 40
    assert "metadata.csv is not UTF-8 throughout" in capsys.readouterr().out
    with_text_files(tmp_path / "pairs", 40)
    for suffix in ("jpg", "txt"):
        os.rename(
            tmp_path / "pairs" / f"003.{suffix}", os.fsencode(tmp_path / "pairs") + b"/caf\xe9." + suffix.encode()
        )
    (tmp_path / "pairs" / "004.txt").rename(os.fsdecode(os.fsencode(tmp_path / "pairs") + b"/\xe9.txt"))
    assert len(everything(tmp_path / "pairs")) == 39
    assert "\\udce9.txt: has no image beside it" in capsys.readouterr().out


def test_an_open_quote_does_not_swallow_the_rows_after_it(tmp_path):
    with_csv(tmp_path, 40)
    table = tmp_path / "metadata.csv"
    rows = [f'{n:03d}.png,"{caption(n)}"' for n in range(40)]
    rows[5] = rows[5].removesuffix('"')
    table.write_text("file_name,text\n" + "\n".join(rows) + "\n")
    problems = Problems("x")
    listing = read_listing(SourceConfig(str(tmp_path)), problems)
    assert {name for name, _ in problems.rows} == {"metadata.csv:7", "005.png", "006.png"}
    assert {r.captions for r in listing.records} == {(caption(n),) for n in range(40) if n not in (5, 6)}


def test_links_to_nothing_are_missing_files(tmp_path):
    with_text_files(tmp_path, 30)
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "a.txt").write_text("a square")
    (tmp_path / "000.txt").unlink()
    (tmp_path / "000.txt").symlink_to(tmp_path / "nowhere.txt")
    problems = Problems("x")
    assert len(read_listing(SourceConfig(str(tmp_path)), problems).records) == 29
    assert set(problems.rows) == {
        ("a.jpg", "the file is missing"),
        ("000.jpg", "000.txt cannot be read (No such file or directory)"),
    }


@pytest.mark.parametrize("path", ["x/../images", "./images"])
def test_a_folder_is_found_by_any_name_of_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    with_jsonl(tmp_path / "images", 40)
    table = tmp_path / "images" / "metadata.jsonl"
    table.write_text(table.read_text().replace("000.png", str(tmp_path / "images" / "000.png")))
    assert len(everything(path)) == 40


def test_no_file_of_tables_is_lost(tmp_path):
    for name, count in (("train", 20), ("test", 12), ("more", 30)):
        with_parquet(tmp_path / "data" / f"{name}.parquet", count)
    (tmp_path / "LICENSE.txt").write_text("do what you like")
    picture(0).save(tmp_path / "preview.png")
    problems = Problems("x")
    assert len(read_listing(SourceConfig(str(tmp_path)), problems).records) == 32
    assert [name for name, _ in problems.rows] == ["data/more.parquet"]


def test_captions_of_numbers_and_of_several_classes(tmp_path):
    assert as_captions(np.array([3.5, np.nan]), Problems("x")) == ("3.5",)
    assert as_captions(True, Problems("x")) == ()
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.List(datasets.ClassLabel(names=["cat", "orange"]))}
    )
    columns = {"image": [picture(n) for n in range(3)], "text": [[0, 1], [1], []]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
    problems = Problems("x")
    listing = read_listing(SourceConfig(str(tmp_path / "x.parquet")), problems)
    assert [r.captions for r in listing.records] == [
        ("an image of a cat", "an image of an orange"),
        ("an image of an orange",),
    ]
    assert [name for name, _ in problems.rows] == ["train 2"]


REFUSED = {
    "no such source": (lambda path: None, "nothing", {}, "there is no data set"),
    "no such file": (lambda path: None, "nothing.csv", {}, "there is no data set"),
    "empty folder": (lambda path: path.mkdir(), "x", {}, "holds no captioned images"),
    "wrong column": (
        with_parquet, "x.parquet", {"caption_column": "caption"}, "no column caption; name one of image, text"),
    "wrong image column": (with_parquet, "x.parquet", {"image_column": "img"}, "--data.image-column"),
    "wrong column of a folder": (with_csv, "x", {"caption_column": "caption"},
        "by its first line, has no column caption; name one of file_name, text with --data.caption-column"),
    "unknown split": (with_saved, "x", {"split": "dev"}, "has no split dev; name one of train"),
    "a table that is not text": (lambda path: path.write_bytes(b"\x00\xff\x01"), "x.csv", {}, "x.csv is not text"),
    "a table without rows": (lambda path: path.write_text("file_name,text\n"), "x.csv", {}, "x.csv holds no rows"),
    "no parquet": (lambda path: path.write_bytes(b"PAR1 no"), "x.parquet", {}, "cannot be opened"),
    "no arrays": (lambda path: path.write_bytes(b"no"), "x.npz", {}, "not what numpy writes as .npz"),
    "arrays of another length": (
        lambda path: np.savez(path, images=np.zeros((3, 4, 4), np.uint8), captions=np.array(["a"])), "x.npz", {},
        "3 images, but 1 caption"),
    "arrays without captions": (
        lambda path: np.savez(path, images=np.zeros((3, 4, 4), np.uint8)), "x.npz", {}, "holds images; expected"),
    "array without captions": (lambda path: np.save(path, np.zeros((3, 4, 4), np.uint8)), "x.npy", {}, "x.txt"),
    "arrays of another range": (
        lambda path: np.savez(path, images=np.full((3, 4, 4), 7.5), captions=np.array(["a"] * 3)), "x.npz", {},
        "scale them to 0 .. 255, or to 0 .. 1"),
    "labels that are no classes": (
        lambda path: np.savez(path, images=np.zeros((2, 4, 4), "u1"), labels=np.ones((2, 2)), class_names=["a"] * 2),
        "x.npz", {}, "not one-hot"),
    "labels that are words": (
        lambda path: np.savez(path, images=np.zeros((2, 4, 4), np.uint8), labels=["a", "b"], class_names=["a", "b"]),
        "x.npz", {}, "not readable as arrays"),
    "an option of another source": (with_csv, "x", {"classes": "ship"}, "--data.classes has no meaning for"),
    "arrays of objects": (
        lambda path: np.savez(path, images=np.zeros((1, 4, 4), np.uint8), captions=np.array([None], object)), "x.npz",
        {}, "not readable as arrays of numbers and strings"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_source_that_cannot_be_used_is_refused_in_clear_words(kind, tmp_path):
    make, name, options, words = REFUSED[kind]
    make(tmp_path / name)
    with pytest.raises(UserError) as refusal:
        load_splits(SourceConfig(str(tmp_path / name), **options), ["train"])
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_bad_source_on_the_command_line_is_one_line(tmp_path, script):
    done = script("train_clip", "--data", "no-such-set", "--out", tmp_path / "run")
    assert_one_error_line(done, "no-such-set", "fashion-mnist, emoji, shapes, cifar10")
    assert not (tmp_path / "run").exists()


def test_a_source_too_small_to_be_split_is_refused(tmp_path):
    with_jsonl(tmp_path / "few", 29)
    with pytest.raises(UserError, match="has 29 usable images, but at least 30 are needed: 10 each for training"):
        DataConfig(str(tmp_path / "few")).load("train", "validation")


def test_where_the_data_lies_is_no_setting_of_a_run(tmp_path):
    one, other = (settings(PriorRun(data=DataConfig(str(tmp_path / name)))) for name in "ab")
    assert one == other
    assert settings(PriorRun(data=DataConfig(size=32))) != settings(PriorRun(data=DataConfig(size=48)))
