"""Captioned images from anywhere: what each source gives, and what becomes of rows that cannot be used."""

import csv
import io
import json
import pickle
import tarfile

import datasets
import numpy as np
import pytest
import torch
from conftest import assert_one_error_line, files_under, run_python
from PIL import Image

from data import cifar10, emoji, records
from data.dataset import shuffled_rows
from data.inspect import InspectOptions, inspect
from data.records import Problems, Record, as_captions, collect, decode, decoded, split_records
from data.sources import SourceConfig, load, read
from stages.data import DataConfig
from stages.loop import settings
from stages.prior import PriorRun
from unclip.errors import UserError

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def picture(number: int, size=(20, 20)) -> Image.Image:
    """A plain colour, of which each number has its own shade."""
    colour = list(COLOURS.values())[number % 3]
    return Image.new("RGB", size, tuple(c + number // 3 for c in colour))


def caption(number: int) -> str:
    return f"a {list(COLOURS)[number % 3]} square, number {number}"


def fill(folder, count: int, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(folder / f"{number:03d}{suffix}")


def with_jsonl(folder, count: int = 40, **changed) -> None:
    fill(folder, count)
    rows = [{"file_name": f"{n:03d}.png", "text": caption(n)} for n in range(count)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def with_csv(folder, count: int = 40) -> None:
    fill(folder, count)
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *((f"{n:03d}.png", caption(n)) for n in range(count))])


def with_text_files(folder, count: int = 40) -> None:
    fill(folder, count, ".jpg")
    for number in range(count):
        (folder / f"{number:03d}.txt").write_text(caption(number) + "\n")


def with_npz(path, count: int = 40) -> None:
    images = np.stack([np.asarray(picture(n)) for n in range(count)])
    np.savez(path, images=images, captions=np.array([caption(n) for n in range(count)]))


def with_npy(path, count: int = 40) -> None:
    np.save(path, np.stack([np.asarray(picture(n)) for n in range(count)]))
    path.with_suffix(".txt").write_text("\n".join(map(caption, range(count))))


def table(count: int = 40) -> datasets.Dataset:
    columns = {"image": [picture(n) for n in range(count)], "text": [caption(n) for n in range(count)]}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def with_parquet(path, count: int = 40) -> None:
    table(count).to_parquet(path)


def with_saved(path, count: int = 40) -> None:
    table(count).save_to_disk(path)


SOURCES = {
    "folder with metadata.jsonl": ("images", with_jsonl),
    "folder with metadata.csv": ("images", with_csv),
    "folder with text files": ("images", with_text_files),
    "npz": ("sprites.npz", with_npz),
    "npy": ("sprites.npy", with_npy),
    "parquet file": ("table.parquet", with_parquet),
    "saved data set": ("saved", with_saved),
}


def everything(source, **options) -> dict[str, np.ndarray]:
    """The images of all splits by caption."""
    splits = load(SourceConfig(str(source), **options), records.SPLITS)
    found = {}
    for data in splits:
        for row in range(len(data)):
            found[data.captions[data.draw(torch.tensor([row]), False)]] = data.images[row].numpy()
    assert sum(map(len, splits)) == len(found), "a row is in two splits"
    return found


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(records, "CACHE", tmp_path_factory.mktemp("cache"))


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
    one, other, changed = (load(SourceConfig(str(tmp_path / f / name)), ["train"])[0] for f in "abc")
    assert one.fingerprint == other.fingerprint
    assert one.name == other.name == f"{name}/train", "no path of the machine"
    assert changed.fingerprint != one.fingerprint


@pytest.mark.parametrize("count", [30, 60, 2000])
def test_splits_are_disjoint_large_enough_and_hardly_change_when_a_row_is_added(count):
    rows = [Record(f"{n}.png", None, ("x",)) for n in range(count)]
    more = [*rows[:7], Record("new.png", None, ("x",)), *rows[7:]]
    parts, larger = ({split: set(split_records(r, split)) for split in records.SPLITS} for r in (rows, more))
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == count
    for split in ("validation", "test"):
        assert len(parts[split]) == max(10, count // 20)
        assert len(parts[split] - larger[split]) <= 1


def test_several_rows_about_one_image_are_its_captions(tmp_path):
    fill(tmp_path, 40)
    rows = [("file_name", "text"), *((f"{n:03d}.png", f"{caption(n)}, {k}") for k in range(3) for n in range(40))]
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    parts = load(SourceConfig(str(tmp_path)), records.SPLITS)
    assert [len(part) for part in parts] == [20, 10, 10]
    shown = [{image.tobytes() for image in part.images.numpy()} for part in parts]
    assert not shown[0] & shown[1] | shown[1] & shown[2] | shown[0] & shown[2]
    assert sorted(len(part.captions) for part in parts) == [30, 30, 60]


def test_what_is_in_no_split_is_named(tmp_path):
    for split in ("train", "test"):
        with_text_files(tmp_path / "images" / split, 12)
    with_text_files(tmp_path / "images" / "extra", 2)
    problems = Problems("x")
    listing = read(SourceConfig(str(tmp_path / "images")), problems)
    assert len(listing.records) == 24
    assert [name for name, _ in problems.found] == ["extra/000.jpg", "extra/001.jpg"]
    datasets.DatasetDict({"train": table(12), "test": table(12), "more": table(3)}).save_to_disk(tmp_path / "saved")
    problems = Problems("x")
    assert len(read(SourceConfig(str(tmp_path / "saved")), problems).records) == 24
    assert problems.found == [("split more", "its 3 rows are not used; name a split with --data.split")]


def test_a_table_over_folders_of_splits_keeps_the_splits(tmp_path):
    lines = []
    for split in ("train", "test"):
        fill(tmp_path / split, 15)
        lines += [json.dumps({"file_name": f"{split}/{n:03d}.png", "text": caption(n)}) for n in range(15)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    listing = read(SourceConfig(str(tmp_path)), Problems("x"))
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
    assert as_captions(7) == ("7",)
    assert as_captions(["a", 2.5, " a ", None, "", float("nan"), {"x": 1}]) == ("a", "2.5")
    assert as_captions(np.array(["x", "y"])) == ("x", "y")
    assert as_captions({"text": "a"}) == as_captions(None) == ()


def test_a_source_keeps_its_own_splits(tmp_path):
    for split, count in (("train", 30), ("val", 12), ("test", 11)):
        with_text_files(tmp_path / split, count)
    sizes = [len(data) for data in load(SourceConfig(str(tmp_path)), records.SPLITS)]
    assert sizes == [30, 12, 11]
    parts = datasets.DatasetDict({"train": table(40), "test": table(12)})
    parts.save_to_disk(tmp_path / "saved")
    sizes = [len(data) for data in load(SourceConfig(str(tmp_path / "saved")), records.SPLITS)]
    assert sizes == [40, 12, 12], "the test split serves for validation where there is no other"
    alone = load(SourceConfig(str(tmp_path / "saved"), split="train"), records.SPLITS)
    assert sum(map(len, alone)) == 40


def test_several_captions_are_all_drawn_and_one_phrasing_takes_the_same_place(tmp_path):
    fill(tmp_path, 30)
    lines = [{"file_name": f"{n:03d}.png", "text": [f"short {n % 2}", f"a longer one {n % 2}"]} for n in range(30)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (data,) = load(SourceConfig(str(tmp_path)), ["train"])
    rows = torch.arange(len(data))
    torch.manual_seed(0)
    drawn = {data.captions[i] for _ in range(9) for i in data.draw(rows, False)}
    assert drawn == {"short 0", "short 1", "a longer one 0", "a longer one 1"}
    for _ in range(9):
        phrasing = {data.captions[i].rstrip("01") for i in data.draw(rows, True)}
        assert len(phrasing) == 1


def test_labels_become_captions_and_classes(tmp_path):
    images = np.stack([np.asarray(picture(n)) for n in range(30)])
    one_hot = np.eye(3)[np.arange(30) % 3]
    np.savez(tmp_path / "a.npz", images=images, labels=one_hot, class_names=np.array(list(COLOURS)))
    (data,) = load(SourceConfig(str(tmp_path / "a.npz")), ["train"])
    assert data.classes == tuple(COLOURS)
    assert data.class_captions == ("an image of a red", "an image of a green", "an image of a blue")
    drawn = [data.captions[i] for i in data.draw(torch.arange(len(data)), False)]
    assert drawn == [data.class_captions[label] for label in data.labels]
    strongest = data.images.float().mean(dim=(2, 3)).argmax(dim=1)
    assert torch.equal(strongest, data.labels)

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS))})
    columns = {"img": [picture(n) for n in range(30)], "label": [n % 3 for n in range(30)]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "b")
    (data,) = load(SourceConfig(str(tmp_path / "b"), image_column="img", caption_column="label"), ["train"])
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
    crop, pad, stretch = (decode(record, 16, 3, fit).transpose(1, 2, 0) for fit in ("crop", "pad", "stretch"))
    assert (crop[:, 2:-2] == COLOURS["green"]).all()
    assert (pad[:3] == 255).all()
    assert (pad[-3:] == 255).all()
    assert tuple(pad[8, 1]) == COLOURS["red"]
    assert tuple(stretch[0, 1]) == COLOURS["red"]
    assert tuple(stretch[-1, -2]) == COLOURS["blue"]
    assert tuple(stretch[8, 8]) == COLOURS["green"]


def test_many_images_in_a_file_give_the_batches_that_few_in_memory_give(tmp_path, monkeypatch):
    with_text_files(tmp_path / "images", 60)
    (tmp_path / "images" / "007.jpg").write_bytes(b"no image")
    config = SourceConfig(str(tmp_path / "images"), size=24)

    def batches(data) -> list:
        torch.manual_seed(0)
        rows = [shuffled_rows(step, 8, len(data), seed=3) for step in range(12)]
        return [(data.images[r], [data.captions[i] for i in data.draw(r, False)]) for r in rows]

    (small,) = load(config, ["train"])
    monkeypatch.setattr(records, "MEMORY", 1000)
    (large,) = load(config, ["train"])
    assert isinstance(large.images.numpy().base, np.memmap) or large.images.numpy().base is not None
    assert len(list(records.CACHE.glob("images-*.npy"))) == 1
    assert small.fingerprint == large.fingerprint
    for (a, text_a), (b, text_b) in zip(batches(small), batches(large), strict=True):
        assert torch.equal(a, b)
        assert text_a == text_b

    monkeypatch.setattr(records, "decode", None)  # the file is found again, nothing is decoded
    (again,) = load(config, ["train"])
    assert again.fingerprint == small.fingerprint


def test_a_file_of_images_is_not_taken_for_that_of_other_images(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MEMORY", 1000)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shades = np.full((40, 8, 8, 3), 50 if folder == "a" else 90, np.uint8)
        np.savez(tmp_path / folder / "x.npz", images=shades, captions=np.array([caption(n) for n in range(40)]))
    a, b = (load(SourceConfig(str(tmp_path / folder / "x.npz")), ["train"])[0] for folder in "ab")
    assert a.images.unique().tolist() == [50]
    assert b.images.unique().tolist() == [90]
    for file in records.CACHE.glob("*.npy"):
        file.unlink()
    (again,) = load(SourceConfig(str(tmp_path / "a" / "x.npz")), ["train"])
    assert torch.equal(again.images, a.images)


def test_a_file_of_images_that_is_not_finished_is_not_used(tmp_path, monkeypatch):
    with_text_files(tmp_path / "images", 40)
    monkeypatch.setattr(records, "MEMORY", 1000)

    def interrupt(*_):
        raise KeyboardInterrupt

    config = SourceConfig(str(tmp_path / "images"))
    with monkeypatch.context() as during:
        during.setattr(records, "_fill", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(config, ["train"])
    assert files_under(records.CACHE) == []
    assert len(load(config, ["train"])[0]) == 20


def test_images_are_decoded_in_order_and_not_all_ahead(monkeypatch):
    monkeypatch.setattr(records, "WAITING", 2)
    opened = []

    def opener(number: int):
        def open_it():
            opened.append(number)
            return picture(number)

        return open_it

    results = decoded([Record(str(n), opener(n), ("x",)) for n in range(100)], 4, 3, "crop")
    first = [tuple(next(results)[:, 0, 0]) for _ in range(5)]
    assert first == [picture(n).getpixel((0, 0)) for n in range(5)]
    assert len(opened) < 40


# --- what cannot be used ----------------------------------------------------------------------------------------------


def with_faults(folder) -> dict[str, str]:
    """A folder with one fault of each kind; {what a message must name: why}."""
    with_jsonl(folder, 40)
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"file_name": "000.png"})
    lines[1] = json.dumps({"file_name": "001.png", "text": "  "})
    lines[2] = json.dumps({"file_name": "gone.png", "text": "a red square"})
    lines[3] = '{"file_name": "003.png", '
    lines[4] = json.dumps({"file_name": "004.png", "text": None})
    lines[5] = json.dumps({"file_name": "../outside.png", "text": "outside"})
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n[1]\n")
    picture(0).save(folder.parent / "outside.png")
    (folder / "006.png").write_bytes((folder / "006.png").read_bytes()[:60])
    (folder / "007.png").write_bytes(b"")
    return {
        "metadata.jsonl:1": "has no text", "metadata.jsonl:2 (001.png)": "has no caption",
        "metadata.jsonl:3 (gone.png)": "the file is missing", "metadata.jsonl:4": "is not JSON",
        "metadata.jsonl:5 (004.png)": "has no caption", "metadata.jsonl:6 (../outside.png)": "outside of the folder",
        "metadata.jsonl:41": "is no JSON object", "006.png": "cannot be read", "007.png": "cannot be read",
        "000.png": "is not named", "002.png": "is not named", "003.png": "is not named", "005.png": "is not named",
    }  # fmt: skip


def test_rows_that_cannot_be_used_are_counted_named_and_written_down(tmp_path, capsys):
    faults = with_faults(tmp_path / "images")
    found = everything(tmp_path / "images")
    assert set(found) == {caption(n) for n in range(8, 40)}
    said = capsys.readouterr().out
    assert f"{len(faults)} rows of {tmp_path / 'images'} cannot be used" in said
    assert sum(line.startswith("  ") and ": " in line for line in said.splitlines()) == records.SHOWN
    (file,) = (records.CACHE / "problems").iterdir()
    assert str(file) in said
    lines = file.read_text().splitlines()
    assert len(lines) == len(faults)
    for name, why in faults.items():
        assert any(line.startswith(f"{name}: ") and why in line for line in lines), name


def test_strict_refuses_rows_that_cannot_be_used(tmp_path):
    with_faults(tmp_path / "images")
    with pytest.raises(UserError, match=r"13 rows of .* cannot be used, the first is metadata\.jsonl:1: has no text"):
        load(SourceConfig(str(tmp_path / "images"), strict=True), records.SPLITS)
    with_jsonl(tmp_path / "clean", 40)
    assert sum(map(len, load(SourceConfig(str(tmp_path / "clean"), strict=True), records.SPLITS))) == 40


def test_pairs_with_faults(tmp_path):
    with_text_files(tmp_path, 30)
    (tmp_path / "000.txt").unlink()
    (tmp_path / "001.txt").write_text(" \n\n")
    (tmp_path / "002.jpg").unlink()
    (tmp_path / "003.txt").write_bytes(b"\xff\xfe\xfa")
    problems = Problems("x")
    listing = read(SourceConfig(str(tmp_path)), problems)
    assert len(listing.records) == 26
    assert {name for name, _ in problems.found} == {"000.jpg", "001.jpg", "002.txt", "003.jpg"}


def test_tables_with_faults(tmp_path):
    features = datasets.Features({"image": datasets.Value("binary"), "text": datasets.Value("string")})
    file = io.BytesIO()
    picture(1).save(file, "PNG")
    good = file.getvalue()
    images = [good] * 40 + [None, b"broken", good, good]
    text = [caption(n) for n in range(40)] + ["a", "b", None, " "]
    datasets.Dataset.from_dict({"image": images, "text": text}, features=features).to_parquet(tmp_path / "a.parquet")
    problems = Problems("x")
    listing = read(SourceConfig(str(tmp_path / "a.parquet")), problems)
    assert [name for name, _ in problems.found] == ["train 42", "train 43"]
    images, kept = collect("x", listing.records, 8, 3, "crop", problems)
    assert len(images) == len(kept) == 40
    assert {name for name, _ in problems.found} == {"train 40", "train 41", "train 42", "train 43"}


REFUSED = {
    "no such source": (lambda path: None, "nothing", {}, "there is no data set"),
    "empty folder": (lambda path: path.mkdir(), "x", {}, "holds no captioned images"),
    "wrong column": (
        with_parquet, "x.parquet", {"caption_column": "caption"}, "no column caption; name one of image, text"),
    "wrong image column": (with_parquet, "x.parquet", {"image_column": "img"}, "--data.image-column"),
    "wrong column of a folder": (with_csv, "x", {"caption_column": "caption"}, "has 0 usable rows"),
    "unknown split": (with_saved, "x", {"split": "dev"}, "has no split dev; name one of train"),
    "no parquet": (lambda path: path.write_bytes(b"PAR1 no"), "x.parquet", {}, "cannot be opened"),
    "no arrays": (lambda path: path.write_bytes(b"no"), "x.npz", {}, "not readable as arrays"),
    "arrays of another length": (
        lambda path: np.savez(path, images=np.zeros((3, 4, 4), np.uint8), captions=np.array(["a"])), "x.npz", {},
        "3 images, but 1 captions"),
    "arrays without captions": (
        lambda path: np.savez(path, images=np.zeros((3, 4, 4), np.uint8)), "x.npz", {}, "holds images; expected"),
    "array without captions": (lambda path: np.save(path, np.zeros((3, 4, 4), np.uint8)), "x.npy", {}, "x.txt"),
    "arrays of another range": (
        lambda path: np.savez(path, images=np.full((3, 4, 4), 7.5), captions=np.array(["a"] * 3)), "x.npz", {},
        "expected 0 .. 255, or floats in 0 .. 1"),
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
        load(SourceConfig(str(tmp_path / name), **options), ["train"])
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_bad_source_on_the_command_line_is_one_line(tmp_path):
    done = run_python("train_clip.py", "--data", "no-such-set", "--out", tmp_path / "run")
    assert_one_error_line(done, "no-such-set", "fashion-mnist, emoji, cifar10")
    assert not (tmp_path / "run").exists()


def test_a_source_too_small_to_be_split_is_refused(tmp_path):
    with_jsonl(tmp_path / "few", 29)
    with pytest.raises(UserError, match="has 9 usable rows for train, but at least 10 are needed"):
        DataConfig(str(tmp_path / "few")).load("train", "validation")


def test_where_the_data_lies_is_no_setting_of_a_run(tmp_path):
    one, other = (settings(PriorRun(data=DataConfig(str(tmp_path / name)))) for name in "ab")
    assert one == other
    assert settings(PriorRun(data=DataConfig(size=32))) != settings(PriorRun(data=DataConfig(size=48)))


# --- named sources ----------------------------------------------------------------------------------------------------


def test_emoji_are_drawn_in_colour_with_their_names(emoji_files):
    problems = Problems("emoji")
    listing = read(SourceConfig("emoji"), problems)
    named = {record.name: record for record in listing.records if record.split != "validation"}
    assert len(named) + len(problems.found) == 1870
    assert {name for name, r in named.items() if r.split == "test"} == set(emoji.HELD_OUT)
    grin, circle = (decode(named[name], 32, 3, "crop").astype(int) for name in ("grinning face", "red circle"))
    assert (grin[:, 0, 0] == 255).all(), "the corners are white"
    assert grin[0, 16, 4] > 200 > 90 > grin[2, 16, 4], "faces are yellow"
    red, green, blue = circle[:, 16, 16]
    assert red > 180 > 90 > max(green, blue)
    shown = {name for name, r in named.items() if r.split == "train"}
    again = {r.name for r in listing.records if r.split == "validation"}
    assert 80 < len(again) < 100
    assert again < shown


def test_emoji_with_skin_tones_are_all_3655(emoji_files):
    problems = Problems("emoji")
    listing = read(SourceConfig("emoji", skin_tones=True), problems)
    assert len({r.name for r in listing.records}) + len(problems.found) == 3655
    tones = [r for r in listing.records if r.name.startswith("waving hand")]
    assert len({decode(r, 16, 3, "crop").tobytes() for r in tones}) == 6


def test_emoji_that_are_nowhere_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no NotoColorEmoji\.ttf"):
        read(SourceConfig("emoji", root=tmp_path), Problems("emoji"))


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """CIFAR-10's files with 20 images a batch: what torchvision reads."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": generator.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": list(range(10)) * 2}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return tmp_path


def test_cifar10_gives_its_classes_or_a_part_of_them(small_cifar10):
    train, validation, test = load(SourceConfig("cifar10", root=small_cifar10), records.SPLITS)
    assert (len(train), len(validation), len(test)) == (90, 10, 20)
    assert train.images.shape[1:] == (3, 32, 32)
    assert train.class_captions[0] == "an image of an airplane"
    (part,) = load(SourceConfig("cifar10", root=small_cifar10, classes="ship,truck"), ["train"])
    assert part.classes == ("ship", "truck")
    assert part.labels.tolist() == [0, 1] * 10
    with pytest.raises(UserError, match=r"no class 'boat'; choose from airplane, .*, truck"):
        read(SourceConfig("cifar10", root=small_cifar10, classes="boat"), Problems("x"))


def test_cifar10_that_is_nowhere_is_one_clear_line(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"CIFAR-10 could not be fetched \(no network\)"):
        cifar10.read(tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    assert tarfile  # torchvision unpacks the archive that its user put there


# --- looking at a source ----------------------------------------------------------------------------------------------


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
    assert "13 rows of" in said
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
