"""Caches are verified when they are read, computed again where a byte has changed, and need space before they begin."""

import errno
import os
import random
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from faults import flip
from PIL import Image
from small_pipeline import CAPTIONS, build
from test_reliable_inputs import MANY

from data import decoding, paths
from data.dataset import build_data_set
from data.decoding import collect_images
from data.problems import Problems
from data.records import Record
from stages.embed import embed_images
from unclip.cli.run import explain
from unclip.clip import load_clip


@pytest.fixture
def some(tmp_path, monkeypatch) -> list[Record]:
    """Images that are decoded into a file."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(decoding, "MEMORY", 0)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    return [
        Record(f"{i}", partial(Image.fromarray, one), (CAPTIONS[i % 3],), version="1") for i, one in enumerate(pixels)
    ]


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_damaged_file_of_decoded_images_is_made_again(suffix, some, tmp_path, capsys):
    problems, chance = Problems("test"), random.Random(0)
    usual, _ = collect_images("test", some, 8, 3, "crop", problems)
    usual = usual.clone()
    for _ in range(8):
        flip(next((tmp_path / "cache").glob(f"*/*{suffix}")), chance)
        again, kept = collect_images("test", some, 8, 3, "crop", problems)
        assert torch.equal(again, usual)
        assert len(kept) == 12
    assert capsys.readouterr().out.count("decoding the images again") >= 7  # a flip in JSON's spaces changes nothing


def test_damaged_embeddings_are_computed_again(some, tmp_path, capsys):
    chance = random.Random(1)
    clip, tokenizer, preprocess = load_clip(build(tmp_path / "pipeline"))
    data = build_data_set("test", *collect_images("test", some, 8, 3, "crop", Problems("test")))

    def embedded():
        found = embed_images(data, clip, "0" * 64, tokenizer, preprocess, torch.device("cpu"), tmp_path / "embedded")
        return [part.clone() for part in (found.embeddings, found.text_embeddings, found.tokens, found.token_starts)]

    usual = embedded()
    for _ in range(8):
        flip(chance.choice(sorted((tmp_path / "embedded").glob("*/*"))), chance)
        assert all(map(torch.equal, embedded(), usual))
    assert "computing it again" in capsys.readouterr().err
    assert len(list((tmp_path / "embedded").iterdir())) == 1


@pytest.mark.parametrize("kind", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_disk_without_space_is_told_before_the_work_begins(kind, some, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(getattr(errno, kind), "no")

    data = build_data_set("test", *collect_images("test", some, 8, 3, "crop", Problems("test")))
    clip, tokenizer, preprocess = load_clip(build(tmp_path / "pipeline"))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    monkeypatch.setattr(type(clip), "encode_image", None)  # CLIP is not run
    monkeypatch.setattr(decoding, "decode_image", None)  # and nothing decoded
    for work in (
        lambda: embed_images(data, clip, "0" * 64, tokenizer, preprocess, torch.device("cpu"), tmp_path / "empty"),
        lambda: collect_images("other", some, 8, 3, "crop", Problems("test")),
    ):
        with pytest.raises(OSError, match="MB are needed") as failure:
            work()
        assert "\n" not in explain(failure.value)
    assert not list((tmp_path / "empty").iterdir())
    assert not list((tmp_path / "cache").glob(".*"))


FILLED = """
import sys
from pathlib import Path
import numpy as np
from unclip.store.array_files import map_array_cache, new_array_cache
folder = Path(sys.argv[1])
full = 0
for number in range(int(sys.argv[2])):
    layout = {"a": (np.uint8, (number + 1, 100_000)), "b": (np.int64, (3000,))}
    try:
        with new_array_cache(folder / str(number), layout) as cache:
            cache.arrays["a"][:] = 7
            cache.arrays["b"][:] = 7
        assert (map_array_cache(folder / str(number)).arrays["a"] == 7).all()
    except OSError as error:
        assert error.errno == 28, error
        full += 1
    assert not list(folder.glob(".*"))
print(full)
"""


def test_full_disk_under_a_mapped_cache(tmp_path):
    """On a disk of 1 MiB, where writing to a mapping without space ends the process."""
    count = 40 if MANY else 6
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mount, tmp_path, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us make a small disk")
    fill = [sys.executable, "-c", FILLED, str(tmp_path), str(count)]
    done = subprocess.run([*mount, tmp_path, *fill], capture_output=True, text=True)
    assert done.returncode == 0, done
    assert int(done.stdout) == count - 3
