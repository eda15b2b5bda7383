"""Fashion-MNIST as it is found, checked and split, and how batches are drawn from any data."""

import gzip
import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import contents, files_under, made_up_data

from data import fashion_mnist
from data.augmentation import random_flip, random_shift
from data.dataset import ListedCaptions
from data.fashion_mnist_captions import HELD_OUT, TONES, WIDTHS, attribute_codes, attributes
from data.shuffling import shuffled_rows
from unclip.errors import UserError

TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture
def test_files(tmp_path):
    """A folder with the real test files, which a test may damage."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in TEST_FILES:
        shutil.copy(fashion_mnist.find_fashion_mnist() / f"{name}.gz", folder)
    return folder


def pictures(data) -> set[bytes]:
    return {image.tobytes() for image in data.images.numpy()}


def says_held_out_pair(data) -> torch.Tensor:
    """(N,), True for the images that show a held-out pair, one image at a time."""
    found = []
    for label, (tone, width) in zip(data.labels.tolist(), data.attributes.tolist(), strict=True):
        pairs = {(TONES[tone], data.classes[label]), (WIDTHS[width], data.classes[label])}
        found.append(bool(pairs & set(HELD_OUT)))
    return torch.tensor(found)


# --- the real files ---------------------------------------------------------------------------------------------------


def test_splits_have_their_sizes_and_share_no_image(splits):
    images, labels, order, bounds = fashion_mnist._load_training_files(fashion_mnist.find_fashion_mnist())
    training = order[5_000:]
    measured = attribute_codes(attributes(images[training]), labels[training], bounds)
    everything = replace(splits["train"], images=images[training], labels=labels[training], attributes=measured)
    assert len(training) == 55_000
    assert len(splits["train"]) == 55_000 - int(says_held_out_pair(everything).sum()) < 55_000
    assert len(splits["validation"]) == 5_000
    assert len(splits["test"]) == 10_000
    sets = {split: pictures(data) for split, data in splits.items()}
    for one, other in itertools.combinations(sets, 2):
        assert not sets[one] & sets[other]
    assert {image.tobytes() for image in images.numpy()} >= sets["train"] | sets["validation"]


def test_images_are_native_grey_bytes_with_labels_in_range(splits):
    for data in splits.values():
        assert data.images.dtype == torch.uint8
        assert data.images.shape[1:] == (1, 28, 28)
        assert (data.channels, data.image_size) == (1, 28)
        assert data.labels.unique().tolist() == list(range(10))
        assert len(data.labels) == len(data.attributes) == len(data)
    assert torch.bincount(splits["test"].labels).tolist() == [1000] * 10


def test_first_test_images_show_what_they_are_known_to_show(splits):
    known = ["ankle boot", "pullover", "trousers", "trousers", "shirt"]  # as the data set's authors order them
    assert [splits["test"].classes[label] for label in splits["test"].labels[:5]] == known


def test_held_out_pairs_are_in_no_training_image_but_in_the_others(splits):
    assert not says_held_out_pair(splits["train"]).any()
    for split in ("validation", "test"):
        held_out = says_held_out_pair(splits[split])
        for pair in HELD_OUT:
            ofclass = splits[split].labels[held_out] == splits[split].classes.index(pair[1])
            assert ofclass.sum() > 50


def test_every_class_has_about_a_third_of_each_attribute(splits):
    data = splits["validation"]
    for label, column, code in itertools.product(range(10), range(2), (1, 2)):
        share = (data.attributes[data.labels == label, column] == code).float().mean()
        assert 0.24 < share < 0.43


def test_splits_are_the_same_at_every_load(splits):
    again = fashion_mnist.load_split("validation")
    assert again.fingerprint == splits["validation"].fingerprint != splits["test"].fingerprint


def test_unknown_split_is_refused():
    with pytest.raises(UserError, match="unknown split 'valid'; choose one of train, validation, test"):
        fashion_mnist.load_split("valid")


# --- finding and checking the files -----------------------------------------------------------------------------------


def test_real_files_pass_the_check_compressed_or_not(test_files):
    images, labels = fashion_mnist.read_files(test_files, "t10k")
    for name in TEST_FILES:
        (test_files / name).write_bytes(gzip.decompress((test_files / f"{name}.gz").read_bytes()))
        (test_files / f"{name}.gz").unlink()
    plain_images, plain_labels = fashion_mnist.read_files(test_files, "t10k")
    assert torch.equal(images, plain_images)
    assert torch.equal(labels, plain_labels)


def flip_a_byte(content: bytes) -> bytes:
    return content[:2000] + bytes([content[2000] ^ 1]) + content[2001:]


DAMAGES = {
    "flipped": flip_a_byte,
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "not gzip": lambda content: b"<html>404 Not Found</html>",
    "cut deep inside": lambda content: gzip.compress(gzip.decompress(content)[:-1]),
    "another file": lambda content: gzip.compress(b"\0" * 10_008),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_refused_by_name(damage, test_files):
    path = test_files / f"{TEST_FILES[1]}.gz"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(UserError, match=f"{path.name} is corrupt") as caught:
        fashion_mnist.read_files(test_files, "t10k")
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(test_files):
    (test_files / f"{TEST_FILES[0]}.gz").unlink()
    with pytest.raises(UserError, match=rf"lacks {TEST_FILES[0]}\.gz"):
        fashion_mnist.read_files(test_files, "t10k")


@pytest.mark.parametrize(("count", "label"), [(9_999, 0), (10_000, 10)], ids=["too few", "label out of range"])
def test_counts_and_labels_are_checked_beside_the_hash(count, label, test_files, monkeypatch):
    content = b"\0" * 8 + bytes([label]) * count
    (test_files / f"{TEST_FILES[1]}.gz").write_bytes(gzip.compress(content))
    hashes = {**fashion_mnist.FILES, TEST_FILES[1]: fashion_mnist.hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(fashion_mnist, "FILES", hashes)
    with pytest.raises(UserError, match="does not hold 10000 images and labels 0-9"):
        fashion_mnist.read_files(test_files, "t10k")


def test_given_folder_is_found_plain_or_as_torchvision_lays_it_out(test_files, tmp_path):
    nested = tmp_path / "torchvision" / "FashionMNIST" / "raw"
    nested.parent.mkdir(parents=True)
    assert fashion_mnist.find_fashion_mnist(test_files) == test_files
    test_files.rename(nested)
    assert fashion_mnist.find_fashion_mnist(tmp_path / "torchvision") == nested


@pytest.mark.parametrize("make", [True, False], ids=["empty", "missing"])
def test_given_folder_without_the_files_is_refused_and_nothing_is_fetched(make, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "_fetch_from_mirror", lambda folder: pytest.fail("fetched"))
    monkeypatch.setattr(fashion_mnist, "_fetch_from_debian", lambda folder: pytest.fail("fetched"))
    root = tmp_path / "elsewhere"
    if make:
        root.mkdir()
    with pytest.raises(UserError, match="elsewhere does not hold Fashion-MNIST"):
        fashion_mnist.find_fashion_mnist(root)


@pytest.fixture
def nothing_fetched_yet(tmp_path, monkeypatch):
    """As on a new machine. Yields the four real files, and the folder that downloads go to."""
    real = fashion_mnist.find_fashion_mnist()
    raw = tmp_path / "data" / "raw" / "fashion-mnist"
    monkeypatch.setattr(fashion_mnist, "RAW", raw)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "not-installed")
    return real, raw


def test_second_source_serves_when_the_first_is_down_or_damaged(nothing_fetched_yet, monkeypatch):
    real, raw = nothing_fetched_yet
    asked = []

    def damaged_mirror(folder):
        """The mirror."""
        asked.append("mirror")
        for name in fashion_mnist.FILES:
            (folder / f"{name}.gz").write_bytes(b"not what was promised")
        return folder

    def package(folder):
        """The package."""
        asked.append("package")
        for name in fashion_mnist.FILES:
            shutil.copy(real / f"{name}.gz", folder)
        return folder

    monkeypatch.setattr(fashion_mnist, "_fetch_from_mirror", damaged_mirror)
    monkeypatch.setattr(fashion_mnist, "_fetch_from_debian", package)
    assert fashion_mnist.find_fashion_mnist() == raw
    assert files_under(raw.parent) == sorted(f"fashion-mnist/{name}.gz" for name in fashion_mnist.FILES)
    assert contents(raw) == {f"{name}.gz": (real / f"{name}.gz").read_bytes() for name in fashion_mnist.FILES}
    assert fashion_mnist.find_fashion_mnist() == raw
    assert asked == ["mirror", "package"]  # and not again for the second call


def test_failure_of_every_source_is_one_line_and_leaves_nothing(nothing_fetched_yet, monkeypatch):
    _, raw = nothing_fetched_yet

    def down(folder):
        """The mirror."""
        (folder / "half").write_bytes(b"half")
        raise OSError("no route to host\nand more")

    def absent(folder):
        """The package."""
        raise RuntimeError("no such package")

    monkeypatch.setattr(fashion_mnist, "_fetch_from_mirror", down)
    monkeypatch.setattr(fashion_mnist, "_fetch_from_debian", absent)
    with pytest.raises(UserError, match=r"The mirror: .?no route to host.*The package: .?no such package") as caught:
        fashion_mnist.find_fashion_mnist()
    assert "\n" not in str(caught.value)
    assert files_under(raw.parent) == []


# --- captioned images, and batches of them ----------------------------------------------------------------------------


def test_first_images_keep_their_labels_and_captions():
    data = made_up_data(40, seed=0)
    part = data.first(15)
    assert len(part) == len(part.labels) == len(part.attributes) == 15
    assert torch.equal(part.images, data.images[:15])
    assert part.name != data.name
    assert data.first(None) is data.first(40) is data
    torch.manual_seed(0)
    drawn = part.draw(torch.tensor([7]), torch.Generator().manual_seed(0))
    assert any(name in part.captions[drawn] for name in ("sneaker", "trainer", "running shoe"))


def test_fingerprint_tells_pixels_captions_and_their_assignment_apart():
    data = made_up_data(20, seed=0)
    brighter = data.images.clone()
    brighter[3, 0, 5, 5] += 1
    lists = ListedCaptions(["a", "b"], torch.tensor([[0], [1]]).repeat(10, 1), torch.ones(20, dtype=torch.long))
    swapped = replace(lists, table=lists.table.flip(0))
    others = [replace(data, images=brighter), data.first(19)]
    others += [replace(data, captioner=c) for c in (lists, replace(lists, captions=["a", "c"]), swapped)]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 6
    assert made_up_data(20, seed=0, name="a copy").fingerprint == data.fingerprint


def test_images_weigh_as_many_pairs_as_they_have_captions():
    data = made_up_data(4, seed=0)
    assert data.pair_weights.tolist() == [1] * 4
    table = torch.tensor([[0, 0, 0], [0, 1, 2], [1, 2, 0], [2, 0, 0]])
    listed = replace(data, captioner=ListedCaptions(["a", "b", "c"], table, torch.tensor([1, 3, 2, 1])))
    assert listed.first(3).pair_weights.tolist() == [0.5, 1.5, 1]


def shifted(image: np.ndarray, dy: int, dx: int) -> bytes:
    """Move (C, H, W) up by dy and left by dx, one pixel at a time."""
    result = np.zeros_like(image)
    channels, height, width = image.shape
    for c, y, x in itertools.product(range(channels), range(height), range(width)):
        result[c, y, x] = image[c, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
    return result.tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_random_shift_equals_a_slow_loop(channels):
    torch.manual_seed(0)
    image = torch.randint(1, 256, (channels, 6, 5), dtype=torch.uint8)
    expected = {shifted(image.numpy(), dy, dx) for dy, dx in itertools.product(range(-2, 3), repeat=2)}
    found = {row.tobytes() for row in random_shift(image.expand(600, -1, -1, -1), 2, torch.default_generator).numpy()}
    assert len(expected) == 25
    assert found == expected


def test_random_shift_moves_each_image_by_itself_and_not_at_all_for_zero():
    torch.manual_seed(0)
    images = torch.randint(1, 256, (50, 1, 6, 5), dtype=torch.uint8)
    for before, after in zip(images.numpy(), random_shift(images, 1, torch.default_generator).numpy(), strict=True):
        assert after.tobytes() in {shifted(before, dy, dx) for dy, dx in itertools.product((-1, 0, 1), repeat=2)}
    assert torch.equal(random_shift(images, 0, torch.default_generator), images)


def test_random_flip_mirrors_about_half_of_the_images():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (400, 3, 4, 5), dtype=torch.uint8)
    flipped = 0
    for before, after in zip(images.numpy(), random_flip(images, torch.default_generator).numpy(), strict=True):
        mirrored = np.stack([[row[::-1] for row in channel] for channel in before])
        assert np.array_equal(after, before) or np.array_equal(after, mirrored)
        flipped += np.array_equal(after, mirrored)
    assert 160 < flipped < 240


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 25])
def test_every_epoch_is_a_new_permutation(batch_size):
    size = 10
    count = 7
    rows = torch.cat([shuffled_rows(step, batch_size, size, seed=3) for step in range(size * count // batch_size + 1)])
    epochs = rows[: size * count].view(count, size)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(size).expand(count, size))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == count


def test_a_batch_is_a_pure_function_of_step_and_seed():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    later = shuffled_rows(31, 8, 20, seed=1)
    first = shuffled_rows(0, 8, 20, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(shuffled_rows(31, 8, 20, seed=1), later)
    assert torch.equal(shuffled_rows(0, 8, 20, seed=1), first)
    assert not torch.equal(shuffled_rows(0, 8, 20, seed=2), first)
    assert len(shuffled_rows(1, 15, 20, seed=1)) == 15  # ends one pass and begins the next
