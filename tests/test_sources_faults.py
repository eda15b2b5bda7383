"""Faults of one's own data that are easily made: each is read as it was meant, or told in one plain line."""

import json
import unicodedata

import datasets
import numpy as np
import pytest
from own_images import caption, everything, fill, picture, table, with_csv, with_jsonl, with_npz, with_text_files
from PIL import Image

from data.caption_values import as_captions
from data.decoding import explain_unreadable
from data.problems import Problems
from data.source_config import SourceConfig
from data.sources import load_splits, read_listing
from stages.clip import fitting_patch
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches")

EVERY = {caption(n) for n in range(40)}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def problems_of(source, **options) -> Problems:
    problems = Problems("x")
    read_listing(SourceConfig(str(source), **options), problems)
    return problems


def replace_text(path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


# --- read as it was meant ---------------------------------------------------------------------------------------------


def upper_case(folder):
    with_csv(folder)
    (folder / "metadata.csv").rename(folder / "Metadata.CSV")


def one_list(folder):
    fill(folder, 40)
    rows = [{"file_name": f"{n:03d}.png", "text": caption(n)} for n in range(40)]
    (folder / "metadata.jsonl").write_text(json.dumps(rows, indent=2))


def one_list_on_one_line(folder):
    one_list(folder)
    (folder / "metadata.jsonl").write_text(json.dumps(json.loads((folder / "metadata.jsonl").read_text())))


def of_windows(folder):
    fill(folder / "images", 40)
    with_csv(folder / "x")
    table = folder / "metadata.csv"
    (folder / "x" / "metadata.csv").rename(table)
    for file in (folder / "x").glob("*.png"):
        file.unlink()
    for number in range(40):
        replace_text(table, f"{number:03d}.png", f"images\\{number:03d}.png")


def other_form(folder):
    with_csv(folder)
    (folder / "003.png").rename(folder / unicodedata.normalize("NFD", "café.png"))
    replace_text(folder / "metadata.csv", "003.png", unicodedata.normalize("NFC", "café.png"))


def hidden(folder):
    with_text_files(folder)
    for name in (".git", ".ipynb_checkpoints", "__MACOSX"):
        with_text_files(folder / name, 3)
    for name in (".DS_Store", "Thumbs.db", "._001.jpg", "desktop.ini"):
        (folder / name).write_bytes(b"\0\5")


def loops(folder):
    with_text_files(folder)
    (folder / "again").symlink_to(folder)
    (folder / "itself").symlink_to("itself")


def brackets(folder):
    folder = folder / "my [best] set {1} *"
    folder.mkdir(parents=True)
    table().to_parquet(folder / "x[1].parquet")


@pytest.mark.parametrize(
    "plant", [upper_case, one_list, one_list_on_one_line, of_windows, other_form, hidden, loops, brackets]
)
def test_what_can_only_be_meant_in_one_way_is_read_so(plant, tmp_path):
    plant(tmp_path / "it")
    source = next((tmp_path / "it").iterdir()) if plant is brackets else tmp_path / "it"
    assert set(everything(source)) == EVERY
    assert not problems_of(source).rows
    if plant is brackets:
        assert set(everything(source / "x[1].parquet")) == EVERY


def test_text_beside_an_array_may_be_in_latin_1(tmp_path):
    with_npz(tmp_path / "x.npz")
    np.save(tmp_path / "y.npy", np.load(tmp_path / "x.npz")["images"])
    (tmp_path / "y.txt").write_bytes("\r\n".join(f"carré {n}" for n in range(40)).encode("latin-1"))
    assert set(everything(tmp_path / "y.npy")) == {f"carré {n}" for n in range(40)}
    assert "y.txt is not UTF-8 throughout" in " ".join(problems_of(tmp_path / "y.npy").notes.values())


@pytest.mark.parametrize("size", range(1, 10))
def test_tiny_images_are_cut_into_patches_that_fit(size):
    assert 1 <= fitting_patch(7, size) <= size


# --- left out, and told -----------------------------------------------------------------------------------------------


def test_images_and_texts_that_are_pointers_of_git_lfs(tmp_path, capsys):
    with_text_files(tmp_path)
    (tmp_path / "003.jpg").write_text(POINTER)
    (tmp_path / "004.txt").write_text(POINTER)
    assert len(everything(tmp_path)) == 38
    said = capsys.readouterr().out
    assert f"003.jpg: cannot be read as an image ({tmp_path / '003.jpg'} is a Git LFS pointer" in said
    assert f"004.jpg: {tmp_path / '004.txt'} is a Git LFS pointer, not the file itself; fetch it with" in said


@pytest.mark.parametrize("text", ["", " \t", "\u200b\u00a0", "a\0b", "\x1b[31mred", "\ud83d", []])
def test_captions_that_say_nothing_or_are_no_text(text):
    assert as_captions(text, Problems("x")) == ()


@pytest.mark.parametrize("text", ["!", "😀", "שלום", "é\u0301", "a\nb\tc", "<|endoftext|>"])
def test_captions_in_any_script_stay_as_they_are(text):
    assert as_captions(text, Problems("x")) == (text,)


def test_rows_of_parquet_that_hold_other_things(tmp_path):
    columns = {"image": ["https://example.org/a.png"] * 40, "text": [b"bytes"] * 3 + [b""] * 37}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "x.parquet")
    assert set(dict(problems_of(tmp_path / "x.parquet").rows.keys()).values()) == {"has no caption that is text"}
    columns["text"] = [caption(n) for n in range(40)]
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "y.parquet")
    record, *_ = read_listing(SourceConfig(str(tmp_path / "y.parquet")), Problems("x")).records
    with pytest.raises(UserError, match="is a web address; download the image"):
        record.open()


def test_an_image_of_too_many_pixels_is_told_in_plain_words():
    assert (
        explain_unreadable(Image.DecompressionBombError("DOS"))
        == "has more pixels than are safe to decode; scale it down"
    )


def test_tables_with_an_empty_name_or_without_rows(tmp_path):
    with_csv(tmp_path)
    with open(tmp_path / "metadata.csv", "a") as file:
        file.write(",nothing\n")
    assert dict(problems_of(tmp_path).rows.keys()) == {"metadata.csv:42": "has an empty file_name"}
    (tmp_path / "metadata.csv").write_text("")
    assert ("metadata.csv", "holds no rows") in problems_of(tmp_path).rows


# --- noted ------------------------------------------------------------------------------------------------------------


def test_what_is_used_but_may_not_be_meant_is_noted(tmp_path):
    with_csv(tmp_path / "both")
    (tmp_path / "both" / "003.txt").write_text("another caption")
    assert (
        "text files of images that a table names are not read, such as 003.png's"
        in problems_of(tmp_path / "both").notes.values()
    )
    fill(tmp_path / "one" / "cat", 40)
    assert "if there are two or more" in " ".join(problems_of(tmp_path / "one").notes.values())
    fill(tmp_path / "same", 40)
    for number in range(40):
        (tmp_path / "same" / f"{number:03d}.txt").write_text("a thing")
    assert "cannot tell them apart" in " ".join(problems_of(tmp_path / "same").notes.values())
    with_jsonl(tmp_path / "fine")
    assert not problems_of(tmp_path / "fine").notes


# --- refused ----------------------------------------------------------------------------------------------------------


def arrays(path, **changed) -> None:
    content = {"images": np.zeros((40, 8, 8), np.uint8), "captions": np.array([caption(n) for n in range(40)])}
    np.savez(path, **content | changed)


def two_tables(path) -> None:
    path.mkdir()
    table().to_parquet(path / "a.parquet")
    datasets.Dataset.from_dict({"other": [1]}).to_parquet(path / "b.parquet")


def a_broken_one(path) -> None:
    path.mkdir()
    table().to_parquet(path / "a.parquet")
    (path / "b.parquet").write_bytes(b"<html>")


REFUSED = {
    "not a number": ("x.npz", lambda p: arrays(p, images=np.full((40, 8, 8), np.nan)), "NaN or infinity in them"),
    "infinite": ("x.npz", lambda p: arrays(p, images=np.full((40, 8, 8), np.inf)), "NaN or infinity in them"),
    "objects": ("x.npz", lambda p: arrays(p, captions=np.array(["a"] * 40, object)), "np.array(captions, str)"),
    "nothing": ("x.npz", np.savez, "holds nothing; expected images"),
    "no arrays": ("x.npy", lambda p: p.write_bytes(b"<html>"), "is not what numpy writes as .npy"),
    "two columns of a name": ("x.csv", lambda p: p.write_text("file_name,text,text\na,b,c\n"), "two columns text"),
    "no rows": ("x.parquet", lambda p: table(1).select([]).to_parquet(p), "(it has no rows)"),
    "no parquet": ("x.parquet", lambda p: p.write_bytes(b""), "x.parquet is not a parquet file"),
    "one that is no parquet": ("x", a_broken_one, "b.parquet is not a parquet file"),
    "tables of other columns": ("x", two_tables, "its files have different columns"),
    **{
        f"a pointer named {suffix}": (f"x{suffix}", lambda p: p.write_text(POINTER), "is a Git LFS pointer")
        for suffix in (".npz", ".npy", ".csv", ".tsv", ".jsonl", ".json", ".tar", ".parquet", ".arrow")
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_told_in_one_plain_line(kind, tmp_path, caplog):
    name, plant, words = REFUSED[kind]
    plant(tmp_path / name)
    with pytest.raises(UserError) as refusal:
        load_splits(SourceConfig(str(tmp_path / name)), ["train"])
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not caplog.messages


@pytest.mark.parametrize("name", ["metadata.jsonl", "data.parquet", "x.tar"])
def test_pointers_of_git_lfs_inside_a_folder(name, tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / name).write_text(POINTER)
    picture(0).save(tmp_path / "it" / "000.png") if name.startswith("metadata") else None
    with pytest.raises(UserError, match="is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"):
        load_splits(SourceConfig(str(tmp_path / "it")), ["train"])


# --- more that can only be meant in one way ---------------------------------------------------------------------------


def linked(folder):
    with_text_files(folder.parent / "elsewhere")
    folder.mkdir()
    for file in (folder.parent / "elsewhere").iterdir():
        link = folder / file.name
        link.symlink_to(file) if file.suffix == ".jpg" else link.write_bytes(file.read_bytes())


def folders_named_as_files(folder):
    with_text_files(folder)
    for name in ("x.png", "x.txt", "metadata.csv"):
        (folder / name).mkdir()


def blank_lines_first(folder):
    with_csv(folder)
    table = folder / "metadata.csv"
    table.write_text(f"\n\nsep=,\n{table.read_text()}")


def lines_of_json(folder):
    with_jsonl(folder)
    (folder / "metadata.jsonl").rename(folder / "metadata.json")


def a_list_in_an_object(folder):
    one_list(folder)
    table = folder / "metadata.jsonl"
    (folder / "metadata.json").write_text(json.dumps({"version": 1, "data": json.loads(table.read_text())}))
    table.unlink()


@pytest.mark.parametrize(
    "plant", [linked, folders_named_as_files, blank_lines_first, lines_of_json, a_list_in_an_object]
)
def test_links_names_and_layouts_that_are_easily_met(plant, tmp_path):
    plant(tmp_path / "it")
    assert set(everything(tmp_path / "it")) == EVERY
    assert not problems_of(tmp_path / "it").rows


def test_a_table_may_be_a_text_file(tmp_path):
    with_csv(tmp_path)
    (tmp_path / "metadata.csv").rename(tmp_path / "captions.txt")
    assert set(everything(tmp_path / "captions.txt")) == EVERY


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("TRAIN", "Val")])
def test_splits_are_known_by_their_other_names(names, tmp_path):
    for count, name in zip((30, 12), names, strict=True):
        with_text_files(tmp_path / name, count)
    train, test = load_splits(SourceConfig(str(tmp_path)), ["train", "test"])
    assert (len(train), len(test)) == (30, 12)


def test_each_line_at_which_csv_fails_is_named(tmp_path):
    with_csv(tmp_path)
    replace_text(tmp_path / "metadata.csv", "a red square", '"a ""red\\" square"')
    found = problems_of(tmp_path).rows
    assert [name for name, why in found if "is not readable as CSV" in why] == [
        f"metadata.csv:{n}" for n in range(2, 42, 3)
    ]


def test_text_in_an_encoding_that_is_not_known_is_told_so(tmp_path):
    with_text_files(tmp_path)
    (tmp_path / "003.txt").write_text("a square", encoding="utf-16-le")
    (tmp_path / "004.txt").write_bytes("赤い四角".encode("shift_jis"))
    (tmp_path / "005.txt").write_text(" \n")
    why = dict(problems_of(tmp_path).rows.keys())
    told = "txt holds no caption that is text in UTF-8, UTF-16 or Windows-1252"
    assert why == {"003.jpg": f"003.{told}", "004.jpg": f"004.{told}", "005.jpg": "005.txt holds no caption"}


def test_a_json_file_beside_each_image_is_not_taken_for_a_table_of_all(tmp_path):
    fill(tmp_path, 3)
    for number in range(3):
        (tmp_path / f"{number:03d}.json").write_text(json.dumps({"text": caption(number)}))
    assert ("000.png", "has no 000.txt beside it") in problems_of(tmp_path).rows


def test_a_problem_is_one_line_whatever_the_name(tmp_path):
    with_text_files(tmp_path)
    picture(0).save(tmp_path / "a\nb.png")
    assert all("\n" not in name + why for name, why in problems_of(tmp_path).rows)
