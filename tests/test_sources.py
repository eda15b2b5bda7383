"""Captioned images from anywhere: what each source gives, and what becomes of rows that cannot be used."""

import csv
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from conftest import files_under
from own_images import (
    COLOURS,
    caption,
    everything,
    fill,
    picture,
    table,
    with_csv,
    with_jsonl,
    with_npz,
    with_parquet,
    with_saved,
    with_text_files,
)
from PIL import Image

from data import decoding, paths
from data.caption_values import as_captions
from data.decoding import decode_image, decode_images
from data.problems import Problems
from data.records import Record
from data.shuffling import shuffled_rows
from data.source_config import SourceConfig
from data.sources import load_splits, read_listing
from data.splits import SPLITS, split_records

pytestmark = pytest.mark.usefixtures("own_caches")


def with_npy(path, count: int = 40) -> None:
    np.save(path, np.stack([np.asarray(picture(n)) for n in range(count)]))
    path.with_suffix(".txt").write_text("\n".join(map(caption, range(count))))


SOURCES = {
    "folder with metadata.jsonl": ("images", with_jsonl),
    "folder with metadata.csv": ("images", with_csv),
    "folder with text files": ("images", with_text_files),
    "npz": ("sprites.npz", with_npz),
    "npy": ("sprites.npy", with_npy),
    "parquet file": ("table.parquet", with_parquet),
    "saved data set": ("saved", with_saved),
}


# --- every source -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOURCES)
def test_every_row_of_a_source_comes_with_its_own_caption(kind, tmp_path):
    name, make = SOURCES[kind]
    make(tmp_path / name)
    found = everything(tmp_path / name, size=16)
    assert set(found) == {caption(n) for n in range(40)}
    for number in range(40):
        expected = np.array(picture(number).getpixel((0, 0)))
        assert found[caption(number)].shape == (3, 16, 16)
        assert np.abs(found[caption(number)] - expected[:, None, None].astype(int)).max() <= 4  # a JPEG is inexact


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_read_twice_is_the_same_and_a_changed_one_is_not(kind, tmp_path):
    name, make = SOURCES[kind]
    for folder, count in (("a", 40), ("b", 40), ("c", 41)):
        (tmp_path / folder).mkdir()
        make(tmp_path / folder / name, count)
    one, other, changed = (load_splits(SourceConfig(str(tmp_path / f / name)), ["train"])[0] for f in "abc")
    assert one.fingerprint == other.fingerprint
    assert one.name == other.name == f"{name}/train", "no path of the machine"
    assert changed.fingerprint != one.fingerprint


@pytest.mark.parametrize("count", [30, 60, 2000])
def test_splits_are_disjoint_large_enough_and_hardly_change_when_a_row_is_added(count):
    rows = [Record(f"{n}.png", None, ("x",)) for n in range(count)]
    more = [*rows[:7], Record("new.png", None, ("x",)), *rows[7:]]
    parts, larger = ({split: set(split_records(r, split)) for split in SPLITS} for r in (rows, more))
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == count
    for split in ("validation", "test"):
        assert len(parts[split]) == max(10, count // 20)
        assert len(parts[split] - larger[split]) <= 1


def test_several_rows_about_one_image_are_its_captions(tmp_path):
    fill(tmp_path, 40)
    rows = [("file_name", "text"), *((f"{n:03d}.png", f"{caption(n)}, {k}") for k in range(3) for n in range(40))]
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    parts = load_splits(SourceConfig(str(tmp_path)), SPLITS)
    assert [len(part) for part in parts] == [20, 10, 10]
    shown = [{image.tobytes() for image in part.images.numpy()} for part in parts]
    assert not shown[0] & shown[1] | shown[1] & shown[2] | shown[0] & shown[2]
    assert sorted(len(part.captions) for part in parts) == [30, 30, 60]


def test_what_is_in_no_split_is_named(tmp_path):
    for split in ("train", "test"):
        with_text_files(tmp_path / "images" / split, 12)
    with_text_files(tmp_path / "images" / "extra", 2)
    problems = Problems("x")
    listing = read_listing(SourceConfig(str(tmp_path / "images")), problems)
    assert len(listing.records) == 24
    assert [name for name, _ in problems.rows] == ["extra/000.jpg", "extra/001.jpg"]
    datasets.DatasetDict({"train": table(12), "test": table(12), "more": table(3)}).save_to_disk(tmp_path / "saved")
    problems = Problems("x")
    assert len(read_listing(SourceConfig(str(tmp_path / "saved")), problems).records) == 24
    assert problems.rows == {("split more", "its 3 rows are not used; name a split with --data.split"): 3}


def test_a_table_over_folders_of_splits_keeps_the_splits(tmp_path):
    lines = []
    for split in ("train", "test"):
        fill(tmp_path / split, 15)
        lines += [json.dumps({"file_name": f"{split}/{n:03d}.png", "text": caption(n)}) for n in range(15)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    listing = read_listing(SourceConfig(str(tmp_path)), Problems("x"))
    assert [r.split for r in listing.records] == ["train"] * 15 + ["test"] * 15


def test_links_uppercase_names_and_a_stray_table_do_no_harm(tmp_path):
    with_text_files(tmp_path / "far", 30)
    folder = tmp_path / "near"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.JPG").symlink_to(tmp_path / "far" / f"{number:03d}.jpg")
        (folder / f"{number}.TXT").write_text(caption(number))
    with_parquet(folder / "features.parquet", 3)
    assert set(everything(folder)) == {caption(n) for n in range(30)}


def test_numbers_are_captions_and_other_things_are_not():
    assert as_captions(7, Problems("x")) == ("7",)
    assert as_captions(["a", 2.5, " a ", None, "", float("nan"), {"x": 1}], Problems("x")) == ("a", "2.5")
    assert as_captions(np.array(["x", "y"]), Problems("x")) == ("x", "y")
    assert as_captions({"text": "a"}, Problems("x")) == as_captions(None, Problems("x")) == ()


def test_a_source_keeps_its_own_splits(tmp_path):
    for split, count in (("train", 30), ("val", 12), ("test", 11)):
        with_text_files(tmp_path / split, count)
    sizes = [len(data) for data in load_splits(SourceConfig(str(tmp_path)), SPLITS)]
    assert sizes == [30, 12, 11]
    parts = datasets.DatasetDict({"train": table(40), "test": table(12)})
    parts.save_to_disk(tmp_path / "saved")
    sizes = [len(data) for data in load_splits(SourceConfig(str(tmp_path / "saved")), SPLITS)]
    assert sizes == [40, 12, 12], "the test split serves for validation where there is no other"
    alone = load_splits(SourceConfig(str(tmp_path / "saved"), split="train"), SPLITS)
    assert sum(map(len, alone)) == 40


def test_several_captions_are_all_drawn_and_one_phrasing_takes_the_same_place(tmp_path):
    fill(tmp_path, 30)
    lines = [{"file_name": f"{n:03d}.png", "text": [f"short {n % 2}", f"a longer one {n % 2}"]} for n in range(30)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (data,) = load_splits(SourceConfig(str(tmp_path)), ["train"])
    rows = torch.arange(len(data))
    torch.manual_seed(0)
    drawn = {data.captions[i] for _ in range(9) for i in data.draw(rows, torch.default_generator)}
    assert drawn == {"short 0", "short 1", "a longer one 0", "a longer one 1"}
    for _ in range(9):
        phrasing = {data.captions[i].rstrip("01") for i in data.draw(rows, torch.default_generator, one_phrasing=True)}
        assert len(phrasing) == 1


def test_labels_become_captions_and_classes(tmp_path):
    images = np.stack([np.asarray(picture(n)) for n in range(30)])
    one_hot = np.eye(3)[np.arange(30) % 3]
    np.savez(tmp_path / "a.npz", images=images, labels=one_hot, class_names=np.array(list(COLOURS)))
    (data,) = load_splits(SourceConfig(str(tmp_path / "a.npz")), ["train"])
    assert data.classes == tuple(COLOURS)
    assert data.class_captions == ("an image of a red", "an image of a green", "an image of a blue")
    drawn = [data.captions[i] for i in data.draw(torch.arange(len(data)), torch.default_generator)]
    assert drawn == [data.class_captions[label] for label in data.labels]
    strongest = data.images.float().mean(dim=(2, 3)).argmax(dim=1)
    assert torch.equal(strongest, data.labels)

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS))})
    columns = {"img": [picture(n) for n in range(30)], "label": [n % 3 for n in range(30)]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "b")
    (data,) = load_splits(SourceConfig(str(tmp_path / "b"), image_column="img", caption_column="label"), ["train"])
    assert torch.equal(data.images.float().mean(dim=(2, 3)).argmax(dim=1), data.labels)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 3, 1, 2),
        lambda x: x / 255,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float32) / 255,
    ],
)
def test_arrays_of_other_layouts_and_types_hold_the_same_images(change, tmp_path):
    images = np.stack([np.asarray(picture(n)) for n in range(40)])
    for name, values in (("a", images), ("b", change(images))):
        np.savez(tmp_path / f"{name}.npz", images=values, captions=np.array([caption(n) for n in range(40)]))
    a, b = (everything(tmp_path / f"{name}.npz") for name in "ab")
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_grey_images_of_one_array_are_read_as_grey(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (40, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=grey, captions=np.array([caption(n) for n in range(40)]))
    found = everything(tmp_path / "a.npz", grey=True)
    assert all(np.array_equal(found[caption(n)][0], grey[n]) for n in range(40)), "an array keeps its own size"


# --- decoding ---------------------------------------------------------------------------------------------------------


def half_and_half() -> Image.Image:
    """Twice as wide as high: the left quarter red, the middle green, the right quarter blue."""
    image = Image.new("RGB", (80, 40), COLOURS["green"])
    image.paste(COLOURS["red"], (0, 0, 20, 40))
    image.paste(COLOURS["blue"], (60, 0, 80, 40))
    return image


def test_crop_pad_and_stretch():
    record = Record("x", half_and_half, ("x",))
    crop, pad, stretch = (decode_image(record, 16, 3, fit).transpose(1, 2, 0) for fit in ("crop", "pad", "stretch"))
    assert (crop[:, 2:-2] == COLOURS["green"]).all()
    assert (pad[:3] == 255).all()
    assert (pad[-3:] == 255).all()
    assert tuple(pad[8, 1]) == COLOURS["red"]
    assert tuple(stretch[0, 1]) == COLOURS["red"]
    assert tuple(stretch[-1, -2]) == COLOURS["blue"]
    assert tuple(stretch[8, 8]) == COLOURS["green"]


def test_many_images_in_a_file_give_the_batches_that_few_in_memory_give(tmp_path, monkeypatch):
    with_text_files(tmp_path / "images", 401)
    (tmp_path / "images" / "007.jpg").write_bytes(b"no image")
    config = SourceConfig(str(tmp_path / "images"), size=24)

    def batches(data) -> list:
        torch.manual_seed(0)
        rows = [shuffled_rows(step, 8, len(data), seed=3) for step in range(12)]
        return [(data.images[r], [data.captions[i] for i in data.draw(r, torch.default_generator)]) for r in rows]

    (small,) = load_splits(config, ["train"])
    monkeypatch.setattr(decoding, "MEMORY", 1000)
    (large,) = load_splits(config, ["train"])
    assert len(list(paths.CACHE.glob("images-*"))) == 1
    assert small.fingerprint == large.fingerprint
    for (a, text_a), (b, text_b) in zip(batches(small), batches(large), strict=True):
        assert torch.equal(a, b)
        assert text_a == text_b

    monkeypatch.setattr(decoding, "decode_image", None)  # the file is found again, nothing is decoded
    (again,) = load_splits(config, ["train"])
    assert again.fingerprint == small.fingerprint


def test_a_file_of_images_is_not_taken_for_that_of_other_images(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MEMORY", 1000)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shades = np.full((40, 8, 8, 3), 50 if folder == "a" else 90, np.uint8)
        np.savez(tmp_path / folder / "x.npz", images=shades, captions=np.array([caption(n) for n in range(40)]))
    a, b = (load_splits(SourceConfig(str(tmp_path / folder / "x.npz")), ["train"])[0] for folder in "ab")
    assert a.images.unique().tolist() == [50]
    assert b.images.unique().tolist() == [90]
    for folder in paths.CACHE.glob("images-*"):
        shutil.rmtree(folder)
    (again,) = load_splits(SourceConfig(str(tmp_path / "a" / "x.npz")), ["train"])
    assert torch.equal(again.images, a.images)


def test_a_file_of_images_that_is_not_finished_is_not_used(tmp_path, monkeypatch):
    with_text_files(tmp_path / "images", 40)
    monkeypatch.setattr(decoding, "MEMORY", 1000)

    def interrupt(*_):
        raise KeyboardInterrupt

    config = SourceConfig(str(tmp_path / "images"))
    with monkeypatch.context() as during:
        during.setattr(decoding, "_fill", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_splits(config, ["train"])
    assert files_under(paths.CACHE) == []
    assert len(load_splits(config, ["train"])[0]) == 20


def test_images_are_decoded_in_order_and_not_all_ahead(monkeypatch):
    monkeypatch.setattr(decoding, "WAITING", 2)
    opened = []

    def opener(number: int):
        def open_it():
            opened.append(number)
            return picture(number)

        return open_it

    results = decode_images([Record(str(n), opener(n), ("x",)) for n in range(100)], 4, 3, "crop")
    first = [tuple(next(results)[:, 0, 0]) for _ in range(5)]
    assert first == [picture(n).getpixel((0, 0)) for n in range(5)]
    assert len(opened) < 40


def test_a_split_that_is_asked_for_twice_is_given_twice(tmp_path):
    with_npz(tmp_path / "sprites.npz")
    first, train, again = load_splits(SourceConfig(str(tmp_path / "sprites.npz")), ["test", "train", "test"])
    assert first is again
    assert len(train) > len(first)
