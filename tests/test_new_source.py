"""A source of one's own: one function and one row of the table, here added from outside."""

from functools import partial

import pytest
from own_images import caption, picture

from data.problems import Problems
from data.provenance import describe_source, read_provenance
from data.records import Listing, Record
from data.source_config import SourceConfig
from data.sources import SOURCES, Source, load_splits, read_listing
from data.splits import SPLITS
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches", "toy_source")


def read_toy(config: SourceConfig, problems: Problems) -> Listing:
    return Listing([Record(f"toy {n}", partial(picture, n), (caption(n),)) for n in range(40)], size=20)


@pytest.fixture
def toy_source(monkeypatch) -> None:
    monkeypatch.setitem(SOURCES, "toy", Source(read_toy))


def test_splits_of_a_new_source_are_loaded():
    train, validation, test = load_splits(SourceConfig("toy", size=16), SPLITS)
    assert [len(data) for data in (train, validation, test)] == [20, 10, 10]
    assert train.name == "toy/train"
    assert train.images.shape == (20, 3, 16, 16)
    assert {text for data in (train, validation, test) for text in data.captions} == {caption(n) for n in range(40)}


def test_options_that_a_new_source_does_not_read_are_refused():
    with pytest.raises(UserError, match=r"--data\.split has no meaning for toy; leave it out"):
        load_splits(SourceConfig("toy", split="train"), ["train"])


def test_messages_name_a_new_source():
    with pytest.raises(UserError, match=r"give one of fashion-mnist, emoji, shapes, cifar10, toy, a folder"):
        read_listing(SourceConfig("missing"), Problems("missing"))


def test_a_new_source_may_load_whole_splits(monkeypatch):
    def load_toy_split(config, split, held_out):
        return load_splits(SourceConfig("toy"), [split])[0]

    monkeypatch.setitem(SOURCES, "whole", Source(load_split=load_toy_split))
    validation, train = load_splits(SourceConfig("whole", limit=15), ["validation", "train"])
    assert (len(validation), len(train)) == (10, 15)
    listing = read_listing(SourceConfig("whole"), Problems("whole"))
    assert len(listing.records) == 40
    assert (listing.size, listing.channels) == (20, 3)
    assert listing.records[0].open().size == (20, 20)
    with pytest.raises(UserError, match=r"--data\.size has no meaning for whole"):
        load_splits(SourceConfig("whole", size=16), ["train"])
    assert describe_source(SourceConfig("whole"), 20)["size"] is None


def test_a_new_kind_of_file_and_of_folder_is_recognised(tmp_path, monkeypatch):
    (tmp_path / "x.toy").write_text("")
    (tmp_path / "toys").mkdir()
    monkeypatch.setitem(SOURCES, "toy files", Source(read_toy, suffixes=(".toy",)))
    assert len(read_listing(SourceConfig(str(tmp_path / "x.toy")), Problems("x")).records) == 40
    row = Source(read_toy, recognise_folder=lambda folder: folder.name == "toys")
    monkeypatch.setitem(SOURCES, "toy folders", row)
    assert len(read_listing(SourceConfig(str(tmp_path / "toys")), Problems("x")).records) == 40
    with pytest.raises(UserError, match="there is no data set 'toy files'"):
        read_listing(SourceConfig("toy files"), Problems("x"))


def test_a_new_source_is_trained_on_by_the_ordinary_scripts(script, tmp_path):
    few = ("--preset", "tiny", "--train.steps", 1, "--out", tmp_path / "run")
    done = script("train_clip", *few, "--data", "toy")
    assert done.code == 0, done.err
    for stage in ("prior", "decoder"):
        done = script(f"train_{stage}", *few)
        assert done.code == 0, done.err
        assert f"data of {tmp_path / 'run'}: --data toy" in done.out
    provenance = read_provenance(tmp_path / "run", SourceConfig())
    assert (provenance.source, provenance.size) == ("toy", 20)
