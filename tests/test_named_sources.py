"""The sources that have a name of their own: emoji, shapes and CIFAR-10."""

import pickle

import numpy as np
import pytest

from data import cifar10, emoji, shapes
from data.decoding import decode_image
from data.problems import Problems
from data.source_config import SourceConfig
from data.sources import load_splits, read_listing
from data.splits import SPLITS
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches")


def test_emoji_are_drawn_in_colour_with_their_names(emoji_files):
    problems = Problems("emoji")
    listing = read_listing(SourceConfig("emoji"), problems)
    named = {record.name: record for record in listing.records if record.split != "validation"}
    assert len(named) + len(problems.rows) == 1870
    assert {name for name, r in named.items() if r.split == "test"} == set(emoji.HELD_OUT)
    grin, circle = (decode_image(named[name], 32, 3, "crop").astype(int) for name in ("grinning face", "red circle"))
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
    listing = read_listing(SourceConfig("emoji", skin_tones=True), problems)
    assert len({r.name for r in listing.records}) + len(problems.rows) == 3655
    tones = [r for r in listing.records if r.name.startswith("waving hand")]
    assert len({decode_image(r, 16, 3, "crop").tobytes() for r in tones}) == 6


def test_emoji_that_are_nowhere_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no NotoColorEmoji\.ttf"):
        read_listing(SourceConfig("emoji", root=tmp_path), Problems("emoji"))


def test_shapes_hold_out_pairs_of_which_both_parts_are_seen():
    listing = read_listing(SourceConfig("shapes"), Problems("shapes"))
    pairs = {split: {tuple(r.name.split()[:2]) for r in listing.records if r.split == split} for split in SPLITS}
    assert len(pairs["test"]) == 16
    assert pairs["train"] == pairs["validation"]
    assert not pairs["train"] & pairs["test"]
    for part, names in ((0, shapes.COLOURS), (1, shapes.SHAPES)):
        assert {pair[part] for pair in pairs["train"]} == {pair[part] for pair in pairs["test"]} == set(names)


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_a_shape_has_its_colour_on_its_ground_and_is_drawn_alike_again(shape):
    image = np.asarray(shapes.draw_shape("red", shape, "black", "a"))
    colours = {tuple(colour) for colour in image.reshape(-1, 3)[::7]}
    assert {(0, 0, 0), shapes.COLOURS["red"]} <= colours
    is_red = (image == shapes.COLOURS["red"]).all(axis=-1)
    assert 0.02 < is_red.mean() < 0.5
    assert not np.concatenate([is_red[0], is_red[-1], is_red[:, 0], is_red[:, -1]]).any(), "nothing is cut off"
    assert np.array_equal(image, shapes.draw_shape("red", shape, "black", "a"))
    assert not np.array_equal(image, shapes.draw_shape("red", shape, "black", "b"))


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """CIFAR-10's files with 20 images per batch: what torchvision reads."""
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
    train, validation, test = load_splits(SourceConfig("cifar10", root=small_cifar10), SPLITS)
    assert (len(train), len(validation), len(test)) == (90, 10, 20)
    assert train.images.shape[1:] == (3, 32, 32)
    assert train.class_captions[0] == "an image of an airplane"
    (part,) = load_splits(SourceConfig("cifar10", root=small_cifar10, classes="ship,truck"), ["train"])
    assert part.classes == ("ship", "truck")
    assert part.labels.tolist() == [0, 1] * 10
    with pytest.raises(UserError, match=r"no class 'boat'; choose from airplane, .*, truck"):
        read_listing(SourceConfig("cifar10", root=small_cifar10, classes="boat"), Problems("x"))


def test_cifar10_that_is_nowhere_is_one_clear_line(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"CIFAR-10 could not be fetched \(no network\)"):
        cifar10.read_cifar10(SourceConfig("cifar10", root=tmp_path), Problems("x"))
