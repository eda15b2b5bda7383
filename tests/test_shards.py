"""Sources that are shards: tar files of images beside their captions."""

import io
import json
import sys
import tarfile

import datasets
import numpy as np
import pytest
from datasets.data_files import DataFilesDict, get_data_patterns
from own_images import caption, everything, picture, with_parquet
from test_sources_forms import EVERY, encoded, listed, reasons

from data.hugging_face import group_files_by_split
from data.problems import Problems
from data.source_config import SourceConfig
from data.sources import load_splits
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches")


def with_shard(path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def samples(numbers, suffix: str = "txt") -> dict[str, bytes]:
    said = {"txt": str, "json": lambda text: json.dumps({"caption": text, "width": 20})}[suffix]
    members = {}
    for n in numbers:
        members |= {f"a/{n:03d}.png": encoded(picture(n)), f"a/{n:03d}.{suffix}": said(caption(n)).encode()}
    return members


def test_a_shard_and_a_folder_of_shards(tmp_path):
    with_shard(tmp_path / "x.tar", samples(range(40)))
    with_shard(tmp_path / "shards" / "0000.tar", samples(range(25), "json"))
    with_shard(tmp_path / "shards" / "0001.tar", samples(range(25, 40), "json"))
    one, several = everything(tmp_path / "x.tar"), everything(tmp_path / "shards", caption_column="caption")
    assert set(one) == set(several) == EVERY
    for number in range(40):
        assert tuple(one[caption(number)][:, 0, 0]) == picture(number).getpixel((0, 0))
        assert np.array_equal(one[caption(number)], several[caption(number)])


def test_names_of_shards_say_their_split(tmp_path):
    with_shard(tmp_path / "train-000.tar", samples(range(20)))
    with_shard(tmp_path / "train-001.tar", samples(range(20, 30)))
    with_shard(tmp_path / "test-000.tar", samples(range(30, 42)))
    assert [len(part) for part in load_splits(SourceConfig(str(tmp_path)), ["train", "test"])] == [30, 12]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("data/a.b-00000-of-00002.tar", "data/a.b-00001-of-00002.tar", "x.tar"), {"a.b": 2}),
        (("train/test-1.tar", "test/train-1.tar"), {"train": 1, "test": 1}),
        (("my_train/1.tar", "x/eval-2/1.tar", "test.tar"), {"train": 1, "test": 1}),
        (("training.0.tar", "a/my-dev_1.tar", "extra.tar"), {"train": 1, "validation": 1}),
        (("trainer.tar", "latest.tar"), {"train": 2}),
    ],
)
def test_splits_by_the_names_of_files_are_those_of_datasets(names, expected, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = get_data_patterns(str(tmp_path))
    theirs = {str(split): sorted(files) for split, files in DataFilesDict.from_patterns(patterns, tmp_path).items()}
    files = sorted(tmp_path.rglob("*.tar"))
    assert group_files_by_split(files, tmp_path, Problems("x")) == theirs
    assert {split: len(files) for split, files in theirs.items()} == expected


def test_shards_with_faults(tmp_path):
    members = samples(range(30)) | samples([30], "json")
    members |= {"a/031.png": encoded(picture(1)), "a/032.txt": b"a square", "a/033.json": b"[", "a/033.png": b"junk"}
    members |= {"a/034.png": encoded(picture(1)), "a/034.cls": b"7", "a/034.seg.png": encoded(picture(2))}
    members |= {"a/035.png": encoded(picture(1)), "a/035.json": b'{"title": "a", "width": 20}'}
    with_shard(tmp_path / "x.tar", members)
    found, problems = listed(tmp_path / "x.tar")
    assert len(found) == 32
    assert reasons(problems) == {
        "x.tar/a/035":
            "its .json has no column text or caption; name one of title, width with --data.caption-column",
        "x.tar/a/031": "has no .txt, .json or .cls with a caption",
        "x.tar/a/032": "has no image, only txt",
        "x.tar/a/033": "its caption is not readable (Expecting value: line 1 column 2 (char 1))",
        "x.tar/a/034.seg.png":
            "is a second image, beside png, as names end at their first dot; choose with --data.image-column",
    }  # fmt: skip
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2])
    found, problems = listed(tmp_path / "cut.tar")
    assert 5 < len(found) < 30
    assert "is cut off or damaged after" in reasons(problems)["cut.tar"]


@pytest.mark.parametrize(
    ("name", "members", "words"),
    [
        ("x.tar", None, "is not an uncompressed tar file"),
        ("x.tar", {"notes.md": b"x"}, "holds no images (x.tar/notes has no image, only md); expected 000.jpg"),
        ("x.tar", {"a/metadata.csv": b"x"}, "is a packed folder with metadata.csv; unpack it, and give the folder"),
        ("x.rar", None, "is a file of another kind than .tar, .parquet, .arrow"),
    ],
)
def test_archives_that_cannot_be_used(name, members, words, tmp_path):
    if members is None:
        (tmp_path / name).write_bytes(b"no archive" * 100)
    else:
        with_shard(tmp_path / name, members)
    with pytest.raises(UserError) as refusal:
        listed(tmp_path / name)
    assert words in str(refusal.value)


def test_a_folder_of_images_beside_their_own_archive_is_a_folder(tmp_path):
    for number in range(40):
        folder = tmp_path / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        picture(number).save(folder / f"{number}.png")
    with_shard(tmp_path / "originals.tar", samples(range(3)))
    assert len(listed(tmp_path)[0]) == 40


# --- names and layouts of others --------------------------------------------------------------------------------------


def as_img2dataset(folder) -> None:
    """Write two shards as img2dataset does: each image with a .json and mostly a .txt, and tables beside the shards."""
    for shard, numbers in enumerate((range(25), range(25, 40))):
        members = {}
        for n in numbers:
            about = {"url": f"https://example.org/{n}", "caption": caption(n), "key": f"{n:09d}", "status": "success"}
            members[f"{n:09d}.jpg"] = encoded(picture(n))
            members[f"{n:09d}.json"] = json.dumps(about).encode()
            if n % 2:
                members[f"{n:09d}.txt"] = caption(n).encode()
        with_shard(folder / f"{shard:05d}.tar", members)
        datasets.Dataset.from_dict({"url": ["a"], "caption": ["b"]}).to_parquet(folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 25, "successes": 25}')


@pytest.mark.parametrize("pattern", ["", "*.tar", "{00000..00001}.tar", "{00000,00001}.tar", "0000[01].tar"])
def test_shards_as_img2dataset_writes_them_by_folder_and_by_pattern(pattern, tmp_path):
    as_img2dataset(tmp_path / "it")
    found, problems = listed(tmp_path / "it" / pattern)
    assert {r.captions for r in found} == {(text,) for text in EVERY}
    assert not problems.rows
    if pattern == "*.tar":
        (data,) = load_splits(SourceConfig(str(tmp_path / "it" / pattern)), ["train"])
        assert data.name == "it/train", "no path of the machine"


def test_patterns_of_tables_and_of_other_files(tmp_path):
    for number in range(2):
        with_parquet(tmp_path / f"{number}.parquet", 20)
        picture(number).save(tmp_path / f"{number}.png")
    assert len(listed(tmp_path / "*.parquet")[0]) == 40
    with pytest.raises(UserError, match=r"a pattern may name files of one of \.tar, \.parquet, \.arrow"):
        listed(tmp_path / "*.png")
    with pytest.raises(UserError, match="there is no data set"):
        listed(tmp_path / "*.tar")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("photo.v2", "photo.v3"), {"photo.v2", "photo.v3"}),
        (("IMG.2024.01", "IMG.2024.02"), {"IMG.2024.01", "IMG.2024.02"}),
        (("a", "a.small"), {"a", "a.small"}),
        (("./a.b", "__MACOSX/a", ".hidden/a"), {"a.b"}),
    ],
)
def test_names_with_dots_are_samples_of_their_own_where_their_texts_are(names, expected, tmp_path):
    members = {}
    for name in names:
        members |= {f"{name}.jpg": encoded(picture(0)), f"{name}.caption": name.encode()}
    with_shard(tmp_path / "x.tar", members)
    found, problems = listed(tmp_path / "x.tar")
    assert {r.name.removeprefix("x.tar/") for r in found} == expected
    assert all(r.captions[0].endswith(r.name.removeprefix("x.tar/")) for r in found)
    assert not problems.rows


def test_dotted_names_without_texts_of_their_own_stay_one_sample(tmp_path):
    members = {"0.rgb.jpg": encoded(picture(0)), "0.depth.png": encoded(picture(1)), "0.json": b'{"text": "a"}'}
    with_shard(tmp_path / "x.tar", members)
    found, _ = listed(tmp_path / "x.tar", image_column="depth.png")
    assert [(r.name, r.open().getpixel((0, 0))) for r in found] == [("x.tar/0", picture(1).getpixel((0, 0)))]


# --- damaged headers --------------------------------------------------------------------------------------------------


def sized(size: int):
    """The field of a header that holds a size too large for octal digits."""
    return lambda: (124, tarfile.itn(size, 12, tarfile.GNU_FORMAT))


DAMAGES = {
    "10^20 bytes": sized(10**20),
    "10^12 bytes": sized(10**12),
    "fewer than no bytes": sized(-(10**9)),
    "a kind of file that does not exist": lambda: (156, b"?"),
    "a header of long names": lambda: (156, b"L"),
    "an extended header": lambda: (156, b"x"),
    "a file with holes": lambda: (156, b"S"),
    "a pipe": lambda: (156, b"6"),
    "no number": lambda: (124, b"\xffabcdefghijk"),
    "a name of 300 letters": lambda: (0, b"a" * 100 + b"/" + b"b" * 20),
}


UNREADABLE = ("10^20 bytes", "10^12 bytes", "fewer than no bytes", "a pipe", "no number", "a name of 300 letters")
"""Damages after which nothing can be read."""
if sys.version_info < (3, 11, 4):
    UNREADABLE += ("an extended header",)  # tarfile took what follows for a faulty header


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_header_is_told_with_the_name_of_the_shard(kind, first, tmp_path):
    with_shard(tmp_path / "x.tar", samples(range(12)))
    content = bytearray((tmp_path / "x.tar").read_bytes())
    header = 0 if first else content.index(b"a/006.png")
    place, value = DAMAGES[kind]()
    content[header + place : header + place + len(value)] = value
    info = content[header : header + 512]
    info[148:156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(info)
    (tmp_path / "x.tar").write_bytes(content)
    if first and kind in UNREADABLE:
        with pytest.raises(UserError, match=r"x\.tar is (not an uncompressed tar file|cut off or damaged after)"):
            listed(tmp_path / "x.tar")
        return
    found, problems = listed(tmp_path / "x.tar")
    assert len(found) >= (11 if first else 6)
    assert len(found) == 12 or any("x.tar" in name for name, _ in problems.rows)
    assert all(record.open() for record in found)
