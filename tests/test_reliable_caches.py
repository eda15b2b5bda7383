"""Caches are verified when they are read, and computed again where a byte of them has changed."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from faults import flip
from PIL import Image
from small_pipeline import CAPTIONS, build

from data import decoding, paths
from data.dataset import build_data_set
from data.decoding import collect_images
from data.problems import Problems
from data.records import Record
from stages.embed import embed_images
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
