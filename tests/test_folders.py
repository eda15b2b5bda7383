"""Folders as other data sets lay them out: texts, tables, splits, classes; and files that must not be read."""

import json
import os
import socket

import numpy as np
import pytest
from own_images import COLOURS, caption, everything, fill, picture, with_parquet, with_text_files
from test_shards import samples, with_shard
from test_sources_forms import EVERY, listed, reasons

from data import decoding
from data.folder_names import name_classes_by_folders, read_split_folders
from data.source_config import SourceConfig
from data.sources import load_splits

pytestmark = pytest.mark.usefixtures("own_caches")


# --- texts beside images, and in folders beside theirs ----------------------------------------------------------------

TEXTS = {
    "1.caption beside 1.png": ("{n}.png", "{n}.caption"),
    "1.png.txt beside 1.png": ("{n}.png", "{n}.png.txt"),
    "names with dots": ("a.b.{n}.png", "a.b.{n}.txt"),
    "images beside captions": ("images/{n}.png", "captions/{n}.txt"),
    "other names of both, with folders below": ("jpg/even/x/{n}.png", "words/even/x/{n}.caption"),
    "parallel folders inside splits": ("train/img/{n}.png", "train/txt/{n}.txt"),
    "splits inside parallel folders": ("images/train/{n}.png", "texts/train/{n}.txt"),
    "a folder of texts below the images": ("{n}.png", "captions/{n}.txt"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_are_found_where_others_put_them(kind, tmp_path):
    for number in range(40):
        image, text = (tmp_path / name.format(n=number) for name in TEXTS[kind])
        image.parent.mkdir(parents=True, exist_ok=True)
        text.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(image)
        text.write_text(caption(number))
    found, problems = listed(tmp_path)
    assert {r.captions for r in found} == {(text,) for text in EVERY}
    for record in found:
        assert record.open().getpixel((0, 0)) == picture(int(record.captions[0].split()[-1])).getpixel((0, 0))
    assert not problems.rows


def test_text_that_fits_several_images_or_lies_in_another_class_is_not_guessed(tmp_path):
    for name in ("images", "masks", "photos"):
        fill(tmp_path / "a" / name, 1)
    fill(tmp_path / "b" / "cat", 1)
    with_text_files(tmp_path / "b" / "dog", 2)
    (tmp_path / "b" / "dog" / "000.jpg").unlink()
    (tmp_path / "a" / "texts").mkdir()
    (tmp_path / "a" / "texts" / "000.txt").write_text("a square")
    for folder in "ab":
        found, problems = listed(tmp_path / folder)
        assert [r.name for r in found] == [{"a": "images/000.png", "b": "dog/001.jpg"}[folder]]
        assert ("has no image beside it" in reasons(problems).values()) == (folder == "b")


# --- tables of well-known data sets -----------------------------------------------------------------------------------


def as_flickr8k_of_kaggle(folder):
    fill(folder / "Images", 40)
    lines = [f"{n:03d}.png,{k} {caption(n).replace(',', '')}" for n in range(40) for k in range(2)]
    (folder / "captions.txt").write_text("\n".join(["image,caption", *lines]))
    return folder / "captions.txt"


def as_flickr8k(folder):
    fill(folder / "Flicker8k_Dataset", 40)
    texts = folder / "Flickr8k_text"
    texts.mkdir()
    lines = [f"{n:03d}.png#{k}\t{k} {caption(n).replace(',', '')}" for n in range(40) for k in range(2)]
    (texts / "Flickr8k.token.txt").write_text("\n".join(lines))
    (texts / "Flickr8k.lemma.token.txt").write_text("\n".join(lines).replace("square", "lemma"))
    (texts / "Flickr_8k.trainImages.txt").write_text("".join(f"{n:03d}.png\n" for n in range(30)))
    return texts / "Flickr8k.token.txt"


def as_flickr30k(folder):
    fill(folder / "images", 40)
    lines = [f"{n:03d}.png| {k}| {k} {caption(n).replace(',', '')}" for n in range(40) for k in range(2)]
    (folder / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *lines]))
    return folder / "results.csv"


@pytest.mark.parametrize("lay_out", [as_flickr8k_of_kaggle, as_flickr8k, as_flickr30k])
def test_folder_and_table_of_flickr(lay_out, tmp_path):
    table = lay_out(tmp_path)
    for source in (tmp_path, table):
        found, problems = listed(source)
        assert {r.captions for r in found} == {
            tuple(f"{k} {caption(n).replace(',', '')}" for k in range(2)) for n in range(40)
        }
        assert not problems.rows


def test_folder_of_coco_keeps_its_splits(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split, count in (("train", 20), ("val", 11)):
        fill(tmp_path / f"{split}2017", count)
        for file in (tmp_path / f"{split}2017").iterdir():
            file.rename(file.with_name(f"{split}{file.name}"))
        for name, key in (("captions", "caption"), ("instances", "bbox")):
            content = {"images": [{"id": n, "file_name": f"{split}{n:03d}.png"} for n in range(count)],
                       "annotations": [{"image_id": n, key: f"{split} {n}"} for n in range(count)]}  # fmt: skip
            (tmp_path / "annotations" / f"{name}_{split}2017.json").write_text(json.dumps(content))
    found, problems = listed(tmp_path)
    assert [r.split for r in found] == ["train"] * 20 + ["validation"] * 11
    assert {r.captions[0].split()[0] for r in found if r.split == "train"} == {"train"}
    assert not problems.rows
    alone, _ = listed(tmp_path / "annotations" / "captions_val2017.json")
    assert [r.split for r in alone] == [None] * 11


@pytest.mark.parametrize("lines", ["{n:03d}.png,{c}", "{n:03d}.png\t{c}", "{c};{n:03d}.png"])
def test_table_without_a_line_of_columns(lines, tmp_path):
    fill(tmp_path, 40)
    rows = [lines.format(n=n, c=caption(n).replace(",", "")) for n in range(40)]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    found, problems = listed(tmp_path / "x.csv")
    assert len(found) == 40
    assert not problems.rows


# --- splits and classes by names of folders ---------------------------------------------------------------------------

CLASSES = {
    "plain": (["cat/1", "dog/1"], ["cat", "dog"], None),
    "a class named train": (["bus/1", "car/1", "train/1"], ["bus", "car", "train"], None),
    "classes named as two splits": (["test/1", "train/1", "bus/1"], ["test", "train", "bus"], None),
    "nested in a class named train": (["bus/red/1", "train/steam/1"], ["bus red", "train steam"], None),
    "splits": (["train/cat/1", "val/dog/1"], ["cat", "dog"], ["train", "validation"]),
    "a split beside others": (["train/cat/1", "train/dog/1", "extra/1"], ["cat", "dog"], ["train", "train"]),
    "splits below classes": (["cat/train/1", "dog/test/1"], ["cat", "dog"], ["train", "test"]),
    "splits below a common folder": (["images/train/cat/1", "images/test/dog/1"], ["cat", "dog"], ["train", "test"]),
    "splits with years": (["train2017/cat/1", "val2017/dog/1"], ["cat", "dog"], ["train", "validation"]),
    "sessions": (["cat/session1/1", "cat/session2/1", "dog/session1/1"], ["cat", "cat", "dog"], None),
    "sessions of one class": (["cat/session1/1", "cat/session2/1"], ["cat session1", "cat session2"], None),
    "equal inner names": (["cat/black/1", "dog/black/1", "dog/red/1"], ["cat black", "dog black", "dog red"], None),
    "inner folders that say nothing": (["cat/images/1", "dog/images/1"], ["cat", "dog"], None),
    "an outer folder that says nothing": (["data/images/cat/1", "data/images/big_dog/1"], ["cat", "big dog"], None),
    "classes of different depth": (["cat/1", "dog/black/1"], ["cat", "dog black"], None),
    "numbers as classes": (["n01/1", "n02/1"], ["n01", "n02"], None),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_and_splits_by_names_of_folders(kind):
    images, classes, splits = CLASSES[kind]
    meanings = read_split_folders([tuple(name.split("/")[:-1]) for name in images], captioned=False)
    inside = [meaning for meaning in meanings if not meaning.is_outside]
    assert [meaning.split for meaning in inside] == (splits or [None] * len(images))
    assert name_classes_by_folders([meaning.rest for meaning in inside]) == classes


def test_captioned_images_beside_one_folder_of_a_split_are_used():
    for name, split in (("train", "train"), ("test", "test")):
        images = [(name,), ("more",), ()]
        assert [(m.split, m.is_outside) for m in read_split_folders(images, captioned=True)] == [
            (split, False), (None, False), (None, False)]  # fmt: skip


def test_class_named_train_is_learnt(tmp_path):
    for number, name in enumerate(("bus", "car", "train")):
        fill(tmp_path / name / "session1", 15 + number)
        fill(tmp_path / name / "session2", 15 + number)
    (data,) = load_splits(SourceConfig(str(tmp_path)), ["train"])
    assert data.classes == ("bus", "car", "train")


# --- files that must not be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["99.txt", "99.jpg", "99.caption", "metadata.csv", "captions.txt", "99.parquet", "99.tar"]
)
def test_pipe_in_a_folder_is_told_and_never_waited_for(name, tmp_path):
    if name.endswith("parquet"):
        with_parquet(tmp_path / "x.parquet")
    else:
        with_text_files(tmp_path)
        picture(0).save(tmp_path / "99.png")
    os.mkfifo(tmp_path / name)
    found, problems = listed(tmp_path)
    assert len(found) == 40
    if name != "99.tar":
        assert reasons(problems)[name] == "is not a regular file"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("name", ["x.csv", "x.tar", "x.parquet", "x.npz", "x.zip", "x.jsonl"])
def test_source_that_is_a_pipe_or_a_device_is_refused(name, make, tmp_path):
    make(tmp_path / name)
    with pytest.raises(ValueError, match="is neither a file nor a folder"):
        listed(tmp_path / name)


def test_sockets_and_devices_are_told(tmp_path):
    with_text_files(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        server.bind("99.txt")
        os.chdir(here)
    (tmp_path / "98.png").symlink_to("/dev/zero")
    assert set(reasons(listed(tmp_path)[1]).values()) == {"is not a regular file"}


def test_links_to_images_and_to_the_folder_itself_are_read_and_one_to_another_folder_is_told(tmp_path):
    for name in ("cat", "dog", "cow"):
        fill(tmp_path / "store" / name, 20)
        (tmp_path / "it" / name).mkdir(parents=True)
        for image in (tmp_path / "store" / name).iterdir():
            (tmp_path / "it" / name / image.name).symlink_to(image)
    (tmp_path / "given").symlink_to("it")
    assert len(listed(tmp_path / "given")[0]) == 60
    (tmp_path / "it" / "fox").symlink_to(tmp_path / "store" / "cow")
    (tmp_path / "it" / "cat2").symlink_to("cat")
    found, problems = listed(tmp_path / "given")
    assert len(found) == 60
    assert reasons(problems) == {
        "fox": f"is a link to {tmp_path / 'store' / 'cow'}, out of the folder; give that one, or copy it",
    }


def test_links_out_of_a_folder_and_loops_are_not_followed(tmp_path):
    with_text_files(tmp_path / "it")
    with_text_files(tmp_path / "secrets")
    links = {"root": "/", "up": "..", "loop": ".", "itself": "itself", "elsewhere": tmp_path / "secrets"}
    for name, target in links.items():
        (tmp_path / "it" / name).symlink_to(target)
    picture(1).save(tmp_path / "it" / "a.jpg")
    (tmp_path / "it" / "a.txt").symlink_to("/etc/hostname")
    (tmp_path / "it" / "metadata.csv").symlink_to("/etc/passwd")
    (tmp_path / "it" / "b.jpg").symlink_to(tmp_path / "secrets" / "000.jpg")  # an image alone may lie elsewhere
    (tmp_path / "it" / "b.txt").write_text("a square")
    found, problems = listed(tmp_path / "it")
    assert len(found) == 41
    why = reasons(problems)
    assert sorted(name for name in why if "out of the folder" in why[name]) == [
        "a.txt", "elsewhere", "metadata.csv", "root", "up"]  # fmt: skip


def test_snapshot_in_the_cache_of_the_hub_is_read_though_it_consists_of_links(tmp_path):
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0123"
    with_text_files(snapshot)
    (tmp_path / "datasets--a--b" / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blob = tmp_path / "datasets--a--b" / "blobs" / str(number)
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, snapshot))
    assert set(everything(snapshot)) == EVERY


def test_names_with_escape_codes_reach_no_message_and_no_caption(tmp_path, capsys):
    evil = "\x1b[2J\x9b1m\u202e"
    for number, name in enumerate(COLOURS):
        fill(tmp_path / evil / f"{name}{evil}", 15 + number)
    (tmp_path / evil / f"{next(iter(COLOURS))}{evil}" / f"{evil}.png").write_bytes(b"no image")
    (tmp_path / evil / f"{evil}.png").write_bytes(b"stray")
    (data,) = load_splits(SourceConfig(str(tmp_path / evil)), ["train"])
    told = capsys.readouterr()
    for text in (told.out, told.err, data.name, *data.classes, *data.captions):
        assert set(text).isdisjoint("\x1b\x9b\u202e")
    assert "cannot be read as an image" in told.out


# --- images that are replaced -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "shard", "array"])
def test_file_replaced_by_one_of_equal_size_and_time_is_noticed(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MEMORY", 0)

    def write(shift: int) -> None:
        if kind == "image":
            with_text_files(tmp_path / "it")
            for number in range(40):
                picture(number + shift).save(tmp_path / "it" / f"{number:03d}.jpg", "BMP")
        elif kind == "array":
            images = np.stack([np.asarray(picture(n + shift)) for n in range(40)])
            np.savez(tmp_path / "it.npz", images=images, captions=[caption(n) for n in range(40)])
        else:
            members = samples(range(40))
            shifted = samples(range(shift, 40 + shift))
            images = [content for name, content in shifted.items() if name.endswith(".png")]
            padded = {name: content + bytes(500 - len(content)) for name, content in zip(
                [name for name in members if name.endswith(".png")], images, strict=True)}  # fmt: skip
            with_shard(tmp_path / "it.tar", members | padded)

    source = {"image": "it", "shard": "it.tar", "array": "it.npz"}[kind]
    file = tmp_path / "it" / "005.jpg" if kind == "image" else tmp_path / source
    write(0)
    before = file.stat()
    (first,) = load_splits(SourceConfig(str(tmp_path / source)), ["train"])
    first_images = first.images.clone()
    write(1)
    for path in [*(tmp_path / "it").glob("*.jpg"), file]:
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    (second,) = load_splits(SourceConfig(str(tmp_path / source)), ["train"])
    assert not (first_images == second.images).all(dim=(1, 2, 3)).any()
