"""Sources that are shards: tar files of images beside their captions."""

import io
import json
import tarfile

import numpy as np
import pytest
from own_images import caption, everything, picture
from test_sources_forms import EVERY, encoded, listed, reasons

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


def test_shards_with_faults(tmp_path):
    members = samples(range(30)) | samples([30], "json")
    members |= {"a/031.png": encoded(picture(1)), "a/032.txt": b"a square", "a/033.json": b"[", "a/033.png": b"junk"}
    members |= {"a/034.png": encoded(picture(1)), "a/034.cls": b"7", "a/034.seg.png": encoded(picture(2))}
    with_shard(tmp_path / "x.tar", members)
    found, problems = listed(tmp_path / "x.tar")
    assert len(found) == 31
    assert reasons(problems) == {
        "x.tar/a/030": "has no text; name one of caption, width with --data.caption-column",
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
        ("x.tar", {"notes.md": b"x"}, "holds no images; expected 000.jpg with 000.txt"),
        ("x.tar", {"a/metadata.csv": b"x"}, "is a packed folder with metadata.csv; unpack it, and give the folder"),
        ("x.rar", None, "is a file of another kind than .parquet, .arrow, .tar"),
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
