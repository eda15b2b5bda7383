"""Sources that are compressed archives."""

import gzip
import shutil
import types
import zipfile

import numpy as np
import pytest
from own_images import COLOURS, caption, everything, fill, with_csv, with_parquet, with_text_files
from test_shards import samples, with_shard
from test_sources_forms import EVERY

from data import archives, paths
from data.source_config import SourceConfig
from data.sources import load_splits
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches")


def of_classes(folder):
    for number, name in enumerate(COLOURS):
        fill(folder / name, 20 + number)


FOLDERS = {
    "table": with_csv,
    "pairs": with_text_files,
    "in a folder of its name": lambda folder: with_csv(folder / "x"),
    "parquet": lambda folder: with_parquet(folder / "x.parquet"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_zip_of_a_folder_holds_what_the_folder_does(kind, tmp_path):
    FOLDERS[kind](tmp_path / "folder")
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "folder")
    zipped, folder = everything(tmp_path / "x.zip"), everything(tmp_path / "folder")
    assert set(zipped) == set(folder) == EVERY
    assert all(np.array_equal(zipped[text], folder[text]) for text in EVERY)


def test_an_archive_is_unpacked_once_and_again_when_it_has_changed(tmp_path, capsys):
    for count, unpacked in ((40, 1), (40, 0), (50, 1)):
        if unpacked:
            with_csv(tmp_path / "folder", count)
            shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "folder")
        (train,) = load_splits(SourceConfig(str(tmp_path / "x.zip")), ["train"])
        assert (train.name, len(train)) == ("x.zip/train", count - 20)
        assert capsys.readouterr().out.count("unpacking") == unpacked


def test_a_zip_of_splits_and_classes(tmp_path):
    for split in ("train", "test"):
        of_classes(tmp_path / "folder" / "birds" / split)
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "folder")
    train, test = load_splits(SourceConfig(str(tmp_path / "x.zip")), ["train", "test"])
    assert train.classes == tuple(sorted(COLOURS))
    assert (len(train), len(test)) == (63, 63)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".TAR.GZ"])
def test_a_compressed_shard(suffix, tmp_path):
    with_shard(tmp_path / "x.tar", samples(range(40), "json"))
    packed = tmp_path / f"y{suffix}"
    packed.write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    assert set(everything(packed, caption_column="caption")) == EVERY


def cut(path):
    with_shard(path.with_suffix(".tar"), samples(range(40)))
    path.write_bytes(gzip.compress(path.with_suffix(".tar").read_bytes())[:-100])


def zip_of(member):
    def make(path):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(member, caption(0))

    return make


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("x.zip", lambda path: path.write_bytes(b"<html>" * 100), "cannot be unpacked (File is not a zip file); fetch"),
        ("x.tar.gz", lambda path: path.write_bytes(b"<html>" * 100), "cannot be unpacked (Not a gzipped file"),
        ("x.tgz", cut, "cannot be unpacked (Compressed file ended before"),
        ("x.zip", zip_of("notes.md"), "holds no captioned images"),
        ("x.tgz", lambda path: path.write_bytes(gzip.compress(b"no tar" * 1000)), "is not an uncompressed tar file"),
    ],
)
def test_an_archive_that_cannot_be_used_is_one_line_and_leaves_nothing_half_unpacked(name, make, words, tmp_path):
    make(tmp_path / name)
    with pytest.raises(UserError) as refusal:
        load_splits(SourceConfig(str(tmp_path / name)), ["train"])
    assert words in str(refusal.value)
    assert not list(paths.CACHE.glob(".*.partial"))


def test_names_that_lead_out_of_an_archive_stay_inside(tmp_path):
    zip_of("../../outside.txt")(tmp_path / "x.zip")
    with pytest.raises(UserError, match="has 0 usable images"):
        load_splits(SourceConfig(str(tmp_path / "x.zip")), ["train"])
    assert not list(tmp_path.rglob("outside.txt"))
    assert len(list(paths.CACHE.rglob("outside.txt"))) == 1


def bomb(path) -> None:
    """Write an archive of two million zeros, which packs them a thousandfold."""
    zeros = bytes(2_000_000)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("000.png", zeros)
    elif path.suffix == ".npz":
        np.savez_compressed(path, images=np.zeros((40, 500, 100), np.uint8), captions=["a"] * 40)
    else:
        path.write_bytes(gzip.compress(zeros))


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tgz", "x.npz"])
def test_archive_that_unpacks_to_far_more_than_its_size_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 2**20)
    bomb(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} unpacks to more than 250 times its size"):
        load_splits(SourceConfig(str(tmp_path / name)), ["train"])
    assert not [path for path in paths.CACHE.rglob("*") if path.is_file()]


def test_many_empty_files_count_as_what_they_take_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 2**20)
    monkeypatch.setattr(archives, "LARGEST_RATIO", 20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for number in range(300):
            file.writestr(str(number), b"")
    with pytest.raises(UserError, match="unpacks to more than"):
        load_splits(SourceConfig(str(tmp_path / "x.zip")), ["train"])


def test_archive_larger_than_the_disk_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    with_csv(tmp_path / "folder")
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "folder")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"x\.zip unpacks to 0 MB, but .* has 0 MB left; free some space"):
        load_splits(SourceConfig(str(tmp_path / "x.zip")), ["train"])


def flip_deflated(path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", bytes(range(256)) * 50)
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "make",
    [
        flip_deflated,
        zip_of("a" * 300),
        zip_of("/".join(["a" * 200] * 30)),
        lambda path: (zip_of("a")(path), zipfile.ZipFile(path, "a").mkdir("a/b")),
        lambda path: path.write_bytes(b"PK\5\6" + b"\xff" * 18),
    ],
)
def test_damaged_zip_is_told_with_its_name_and_leaves_nothing(make, tmp_path):
    make(tmp_path / "x.zip")
    with pytest.raises(UserError, match=r"x\.zip cannot be unpacked") as refusal:
        load_splits(SourceConfig(str(tmp_path / "x.zip")), ["train"])
    assert len(str(refusal.value)) < 300
    assert not list(paths.CACHE.glob("*"))
