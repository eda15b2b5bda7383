"""The forms that people's files come in: dialects, encodings, formats, archives. Each is read, or its cause named."""

import csv
import io
import json

import datasets
import numpy as np
import pytest
from own_images import COLOURS, caption, everything, fill, picture, with_csv, with_jsonl, with_text_files
from PIL import Image

from data.caption_values import as_captions
from data.decoding import collect_images, decode_image
from data.problems import Problems
from data.records import Record
from data.source_config import SourceConfig
from data.sources import load_splits, read_listing
from data.splits import SPLITS, split_records
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches")

EVERY = {caption(n) for n in range(40)}


def listed(source, **options) -> tuple[list[Record], Problems]:
    problems = Problems("x")
    return read_listing(SourceConfig(str(source), **options), problems).records, problems


def reasons(problems: Problems) -> dict[str, str]:
    return dict(problems.rows.keys())


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


# --- captions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['["a red square", "a b\\u00e9"]', "['a red square', 'a bé']"])
def test_text_that_is_a_list_is_several_captions_and_that_is_said(text, tmp_path, capsys):
    assert as_captions(text, Problems("x")) == ("a red square", "a bé")
    others = [f"['number {n}']" for n in range(10)]
    columns = {"image": [picture(n) for n in range(40)], "text": [text] * 30 + others}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(tmp_path / "x.parquet")
    (data,) = load_splits(SourceConfig(str(tmp_path / "x.parquet")), ["train"])
    assert set(data.captions) - {f"number {n}" for n in range(10)} == {"a red square", "a bé"}
    assert capsys.readouterr().out.count("is read as a list of captions") == 1


@pytest.mark.parametrize("text", ["[cat]", "[1]", "a [b]", "[" * 5000 + "]", '["a"', "[sic] he said [so]"])
def test_other_text_in_brackets_stays_as_it_is(text):
    problems = Problems("x")
    assert as_captions(text, problems) == (text,)
    assert not problems.notes


def test_class_numbers_are_noted_and_put_into_words_by_names(tmp_path):
    columns = {"image": [picture(n) for n in range(40)], "label": [n % 3 for n in range(40)]}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(tmp_path / "x.parquet")
    found, problems = listed(tmp_path / "x.parquet", caption_column="label")
    assert {r.captions for r in found} == {("0",), ("1",), ("2",)}
    (note,) = problems.notes.values()
    assert "--data.class-names" in note
    options = {"caption_column": "label", "class_names": "red, green, blue"}
    (data,) = load_splits(SourceConfig(str(tmp_path / "x.parquet"), **options), ["train"])
    assert data.classes == ("red", "green", "blue")
    strongest = data.images.float().mean(dim=(2, 3)).argmax(dim=1)
    assert data.labels.tolist() == strongest.tolist()
    found, problems = listed(tmp_path / "x.parquet", caption_column="label", class_names="red,green")
    assert len(found) == 27
    assert set(reasons(problems).values()) == {"has class 2, but only classes 0 to 1 have names"}


def test_class_names_for_captions_that_are_no_numbers_are_refused(tmp_path):
    with_csv(tmp_path / "x")
    with pytest.raises(UserError, match=r"captions that are not class numbers; leave --data\.class-names out"):
        read_listing(SourceConfig(str(tmp_path / "x"), class_names="cat,dog"), Problems("it"))


# --- tables -----------------------------------------------------------------------------------------------------------


DIALECTS = {
    "semicolons": ("utf-8", ";", ("file_name", "text")),
    "tabs": ("utf-8", "\t", ("file_name", "text")),
    "bars": ("utf-8", "|", ("file_name", "text")),
    "blanks": ("utf-8", ", ", (" text", "file_name ")),
    "a byte order mark": ("utf-8-sig", ",", ("file_name", "text")),
    "UTF-16": ("utf-16", "\t", ("file_name", "text")),
    "Latin-1": ("latin-1", ";", ("file_name", "text")),
}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_csv_of_every_dialect(dialect, ending, tmp_path):
    encoding, separator, columns = DIALECTS[dialect]
    fill(tmp_path, 40)
    rows = [{"file_name": f"{n:03d}.png", "text": f"café, {caption(n)}"} for n in range(40)]
    lines = [separator.join(columns)]
    lines += [separator.join(f'"{row[column.strip()]}"' for column in columns) for row in rows]
    (tmp_path / "metadata.csv").write_bytes(ending.join([*lines, ""]).encode(encoding))
    found, problems = listed(tmp_path)
    assert {r.captions for r in found} == {(row["text"],) for row in rows}
    assert not problems.rows
    assert len(problems.notes) == (dialect == "Latin-1")


def test_bytes_that_are_no_text_are_no_captions(tmp_path):
    with_text_files(tmp_path, 40)
    (tmp_path / "003.txt").write_bytes(encoded(picture(3)))
    found, problems = listed(tmp_path)
    assert len(found) == 39
    assert reasons(problems) == {"003.jpg": "003.txt holds no caption that is text in UTF-8, UTF-16 or Windows-1252"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_without_the_column_names_those_that_it_has(suffix, tmp_path):
    fill(tmp_path, 3)
    rows = [{"where": f"{n:03d}.png", "what": "a"} for n in range(3)]
    with open(tmp_path / f"x{suffix}", "w", newline="") as file:
        if suffix == ".csv":
            csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    source = tmp_path / f"x{suffix}"
    with pytest.raises(
        UserError, match=r"no column image or file_name; name one of where, what with --data\.image-column"
    ):
        listed(source)
    with pytest.raises(
        UserError, match=r"no column text or caption; name one of where, what with --data\.caption-column"
    ):
        listed(source, image_column="where")
    assert len(listed(source, image_column="where", caption_column="what")[0]) == 3


def as_json(rows) -> str:
    return json.dumps(rows)


def as_json_by_name(rows) -> str:
    return json.dumps({row["file_name"]: row["text"] for row in rows})


def as_json_lines(rows) -> str:
    return "\n".join(map(json.dumps, rows))


def as_csv(rows) -> str:
    return "file_name,text\n" + "\n".join(f'{row["file_name"]},"{row["text"]}"' for row in rows)


TABLES = {
    "x.csv": as_csv, "x.jsonl": as_json_lines, "x.json": as_json, "by name/x.json": as_json_by_name,
    "metadata.json": as_json, "deep/er/metadata.jsonl": as_json_lines,
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_sources_and_tables_in_folders_below(name, tmp_path):
    path = tmp_path / name
    fill(path.parent / "pictures", 40)
    rows = [{"file_name": f"pictures/{n:03d}.png", "text": caption(n)} for n in range(40)]
    path.write_text(TABLES[name](rows))
    found = everything(tmp_path if path.stem == "metadata" else path)
    assert set(found) == EVERY
    assert all(tuple(found[caption(n)][:, 0, 0]) == picture(n).getpixel((0, 0)) for n in range(40))


def test_a_table_may_name_files_anywhere_and_says_what_is_wrong_with_each(tmp_path):
    fill(tmp_path / "pictures", 2)
    (tmp_path / "tables").mkdir()
    rows = [
        {"file_name": "../pictures/000.png", "text": "near"},
        {"file_name": str(tmp_path / "pictures" / "001.png"), "text": "far"},
        {"file_name": "https://example.org/a.png", "text": "web"},
        {"file_name": "gone.png", "text": "gone"},
        {"file_name": "../pictures/000.png", "text": "again"},
    ]
    (tmp_path / "tables" / "x.jsonl").write_text(as_json_lines(rows))
    found, problems = listed(tmp_path / "tables" / "x.jsonl")
    assert [r.captions for r in found] == [("near", "again"), ("far",)]
    assert reasons(problems) == {
        "x.jsonl:3 (https://example.org/a.png)": "is a web address; download the image, and name its file",
        "x.jsonl:4 (gone.png)": "the file is missing",
    }


@pytest.mark.parametrize("place", ["x.json", "annotations/x.json", "metadata.json"])
def test_captions_in_the_form_of_coco(place, tmp_path):
    fill(tmp_path / "train2017", 40)
    images = [{"id": 7 * n, "file_name": f"{n:03d}.png", "width": 20} for n in range(41)]
    said = [{"image_id": 7 * n, "caption": prefix + caption(n)} for prefix in ("", "again ") for n in range(40)]
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(json.dumps({"info": {}, "images": images, "annotations": said}))
    found, problems = listed(tmp_path if place == "metadata.json" else tmp_path / place)
    assert {r.name.rpartition("/")[2]: r.captions for r in found} == {
        f"{n:03d}.png": (caption(n), f"again {caption(n)}") for n in range(40)
    }
    assert list(reasons(problems).values()) == ["has no caption that is text"], "of the image without annotations"
    assert "are found in" in problems.notes["beside"]


def test_boxes_in_the_form_of_coco_are_refused(tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not a file of captions in COCO's form: it lacks 'caption'; expected images"):
        listed(tmp_path / "x.json")


def test_a_file_in_several_folders_beside_a_table_is_not_guessed(tmp_path):
    fill(tmp_path / "a", 2)
    fill(tmp_path / "b", 1)
    (tmp_path / "x.csv").write_text("file_name,text\n000.png,first\n001.png,second\n")
    found, problems = listed(tmp_path / "x.csv")
    assert [(r.name, r.captions) for r in found] == [("a/001.png", ("second",))]
    assert "lies in a and b; name its folder too" in reasons(problems)["x.csv:2 (000.png)"]


def test_a_folder_whose_captions_are_in_another_table_says_how_to_name_it(tmp_path):
    with_csv(tmp_path)
    (tmp_path / "metadata.csv").rename(tmp_path / "words.csv")
    with pytest.raises(UserError, match=r"if they are in words\.csv, give .*/words\.csv as the source"):
        listed(tmp_path)
    assert set(everything(tmp_path / "words.csv")) == EVERY


def test_metadata_json_of_a_program_does_not_hide_text_files(tmp_path):
    with_text_files(tmp_path, 40)
    (tmp_path / "metadata.json").write_text('{"tool": {"version": 3}}')
    assert set(everything(tmp_path)) == EVERY


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_folders_as_classes(splits, tmp_path):
    for split in splits:
        for number in range(45):
            folder = tmp_path / split / f"{list(COLOURS)[number % 3]}_square"
            folder.mkdir(parents=True, exist_ok=True)
            picture(number).save(folder / f"{number}.png")
    picture(1).save(tmp_path / splits[0] / "stray.png")
    (data,) = load_splits(SourceConfig(str(tmp_path)), ["train"])
    assert data.classes == ("blue square", "green square", "red square")
    assert data.class_captions[0] == "an image of a blue square"
    strongest = 2 - data.images.float().mean(dim=(2, 3)).argmax(dim=1)
    assert data.labels.tolist() == strongest.tolist()
    found, problems = listed(tmp_path)
    assert sorted(r.split for r in found if r.split) == sorted(split for split in splits if split for _ in range(45))
    assert list(reasons(problems).values()) == ["lies in no folder of a class"]
    (note,) = problems.notes.values()
    assert "captions are made of the names of the folders" in note


def test_one_folder_of_images_without_captions_is_not_a_class(tmp_path):
    fill(tmp_path / "images", 3)
    found, problems = listed(tmp_path)
    assert not found
    assert set(reasons(problems).values()) == {"has no 000.txt beside it", "has no 001.txt beside it",
                                               "has no 002.txt beside it"}  # fmt: skip


@pytest.mark.parametrize("listing", [True, False])
def test_formats_that_pillow_reads_are_read_and_others_are_named(listing, tmp_path):
    fill(tmp_path, 10)
    kinds = {".avif": "AVIF", ".jfif": "JPEG", ".ppm": "PPM", ".heic": None}
    for suffix, kind in kinds.items():
        (tmp_path / f"x{suffix}").write_bytes(encoded(picture(1), kind) if kind else b"a photograph")
    names = [*(f"{n:03d}.png" for n in range(10)), *(f"x{suffix}" for suffix in kinds)]
    if listing:
        rows = [{"file_name": name, "text": "a square"} for name in names]
        (tmp_path / "metadata.jsonl").write_text(as_json_lines(rows))
    else:
        for name in names:
            (tmp_path / name).with_suffix(".txt").write_text("a square")
    found, problems = listed(tmp_path)
    assert {r.name for r in found} == set(names) - {"x.heic"}
    assert all(decode_image(r, 8, 3, "crop").shape == (3, 8, 8) for r in found)
    assert reasons(problems) == {"x.heic": "Pillow cannot read .heic files here; save the image as PNG or JPEG"}


def test_few_images_are_counted_where_there_are_too_few(tmp_path):
    with_jsonl(tmp_path / "few", 12)
    with pytest.raises(UserError, match="it has 12 usable images, but at least 30 are needed: 10 each for training"):
        load_splits(SourceConfig(str(tmp_path / "few")), ["train", "validation"])


def test_the_fewest_images_are_those_that_can_be_read(tmp_path, capsys):
    for split, count in (("train", 20), ("validation", 12)):
        with_text_files(tmp_path / split, count)
    for number in range(10):
        (tmp_path / "validation" / f"{number:03d}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="2 of its 12 images for validation can be read, but 10 are needed"):
        load_splits(SourceConfig(str(tmp_path)), ["train", "validation"])
    assert "10 rows of" in capsys.readouterr().out


def test_a_folder_of_training_images_alone_is_split_like_any_other(tmp_path):
    with_jsonl(tmp_path / "few" / "train", 12)
    with pytest.raises(UserError, match="it has 12 usable images, but at least 30 are needed"):
        load_splits(SourceConfig(str(tmp_path / "few")), ["train"])
    with_jsonl(tmp_path / "enough" / "train", 40)
    assert [len(part) for part in load_splits(SourceConfig(str(tmp_path / "enough")), SPLITS)] == [20, 10, 10]


def test_a_broken_image_does_not_make_a_small_source_too_small(tmp_path):
    with_text_files(tmp_path, 100)
    everywhere = [r.name for split in SPLITS for r in split_records(listed(tmp_path)[0], split)[:3]]
    for name in everywhere:
        (tmp_path / name).write_bytes(b"no image")
    assert [len(part) for part in load_splits(SourceConfig(str(tmp_path)), SPLITS)] == [71, 10, 10]


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool])
def test_arrays_of_zeros_and_ones_are_black_and_white(kind, tmp_path):
    images = np.random.default_rng(0).integers(0, 2, (40, 8, 8)).astype(kind)
    np.savez(tmp_path / "a.npz", images=images, captions=[caption(n) for n in range(40)])
    found, problems = listed(tmp_path / "a.npz", grey=True)
    assert np.array_equal(decode_image(found[5], 8, 1, "crop")[0], images[5] * np.uint8(255))
    assert list(problems.notes.values()) == ["its images hold nothing but 0 and 1, which are taken for black and white"]


def test_arrays_of_floats_up_to_255(tmp_path):
    images = np.random.default_rng(0).uniform(0, 255, (40, 8, 8))
    np.savez(tmp_path / "a.npz", images=images, captions=[caption(n) for n in range(40)])
    found, _ = listed(tmp_path / "a.npz")
    assert np.array_equal(decode_image(found[5], 8, 1, "crop")[0], np.round(images[5]).astype(np.uint8))


def test_labels_of_arrays_without_names(tmp_path):
    images, labels = np.stack([np.asarray(picture(n)) for n in range(40)]), np.arange(40) % 3
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.save(tmp_path / "b.npy", images)
    np.save(tmp_path / "b_labels.npy", labels)
    for name in ("a.npz", "b.npy"):
        assert {r.captions for r in listed(tmp_path / name)[0]} == {("0",), ("1",), ("2",)}
        (data,) = load_splits(SourceConfig(str(tmp_path / name), class_names=",".join(COLOURS)), ["train"])
        assert data.labels.tolist() == data.images.float().mean(dim=(2, 3)).argmax(dim=1).tolist()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_twelve_bits_in_sixteen_are_refused(suffix, tmp_path):
    for number in range(20):
        pixels = np.full((8, 8), 4095 if number < 3 else 60000, np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}{suffix}")
        (tmp_path / f"{number:02d}.txt").write_text("a square")
    problems = Problems("x")
    images, kept = collect_images("x", listed(tmp_path)[0], 8, 1, "crop", problems)
    assert [r.name for r in kept] == [f"{number:02d}{suffix}" for number in range(3, 20)]
    assert images.unique().tolist() == [60000 // 256]
    (why,) = set(reasons(problems).values())
    assert "its pixels have 16 bits but reach only 4095; scale them to 0 .. 65535" in why


def test_null_and_junk_images_are_told_in_plain_words(tmp_path):
    features = datasets.Features({"image": datasets.Value("binary"), "text": datasets.Value("string")})
    images = [encoded(picture(1))] * 10 + [None, b"junk"]
    columns = {"image": images, "text": ["a square"] * 12}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"image": [1, 2], "text": ["a", "b"]}).to_parquet(tmp_path / "b.parquet")
    problems = Problems("x")
    for name in "ab":
        collect_images("x", listed(tmp_path / f"{name}.parquet")[0], 8, 3, "crop", problems)
    assert list(reasons(problems).values()) == [
        "cannot be read as an image (the row has none)",
        "cannot be read as an image (it is in no format that Pillow knows)",
        *["cannot be read as an image (the column holds a int, not the bytes or the name of an image file; see "
          "--data.image-column)"] * 2,
    ]  # fmt: skip
