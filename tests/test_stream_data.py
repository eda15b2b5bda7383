"""Streams of rows: the same from every kind of shard and from any state, each row once an epoch, and nothing lost."""

import http.server
import json
import threading
from pathlib import Path

import fake_hub
import pytest
import torch
from conftest import contents
from shards_of_rows import WRITERS, names_in, stream_of, taken, write_shards

from data.problems import Problems
from data.source_config import SourceConfig
from data.stream import fetching, sample
from data.stream.order import ShardOrder
from data.stream.shard_list import list_shards
from data.stream.streamed_images import open_stream
from unclip.errors import UserError

pytestmark = pytest.mark.usefixtures("own_caches")


def test_every_kind_of_shard_gives_the_same_batches(tmp_path):
    loaders = {}
    for kind in WRITERS:
        train = stream_of(write_shards(tmp_path / kind, kind))
        loaders[kind] = (train, train.open(3, 8, 0, 1))
    for _ in range(4):
        (one, *others) = [train.step_images(next(loader)) for train, loader in loaders.values()]
        for other in others:
            assert torch.equal(one.images, other.images)
            assert one.captions == other.captions
    assert one.images.shape == (8, 3, 8, 8)  # small images keep their size


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_from_any_state_to_the_bit(workers, tmp_path):
    train = stream_of(write_shards(tmp_path / "x"), workers=workers)
    loader = train.open(0, 7, 0, 1)
    states, batches = [], []
    for _ in range(45):  # an epoch has some 31
        states.append(json.dumps([loader.state_dict()]))
        batches.append(next(loader))
    for step in (0, 1, 4, 9, 33) if workers == 0 else (9,):
        again = train.open(0, 7, 0, 1)
        assert again.load_state_dict(json.loads(states[step])) == ""
        for expected in batches[step : step + 8]:
            batch = next(again)
            assert batch.rows == expected.rows
            assert torch.equal(batch.images, expected.images)


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(tmp_path):
    train = stream_of(write_shards(tmp_path / "x"))
    names = sorted(names_in(train))
    drawn = [name for [name] in taken(train, 2 * len(names), size=1)]
    first, second = drawn[: len(names)], drawn[len(names) :]
    assert sorted(first) == sorted(second) == names
    assert first != second
    assert first != names


@pytest.mark.parametrize("shards", [4, 3])
def test_ranks_read_disjoint_rows(shards, tmp_path):
    """Whether or not the number of shards is a multiple of that of the ranks."""
    train = stream_of(write_shards(tmp_path / "x", shards=shards, rows=80))
    one, other = ({name for batch in taken(train, 10, 5, rank, 2) for name in batch} for rank in range(2))
    assert len(one) == len(other) == 50
    assert not one & other


def test_readers_of_any_number_take_each_shard_once_an_epoch():
    for ranks, workers, count in ((1, 1, 5), (2, 1, 5), (3, 2, 4), (2, 2, 17)):
        order = ShardOrder(count, 1, ranks, workers)
        readers = [(rank, worker) for rank in range(ranks) for worker in range(workers)]
        rounds = -(-6 * count // order.round_size)
        places = [order.place(*r, n, i) for n in range(rounds) for r in readers for i in range(order.share)]
        assert sorted(places) == list(range(rounds * order.round_size))
        epochs = [sorted(map(order.shard, range(e * count, (e + 1) * count))) for e in range(6)]
        assert epochs == [list(range(count))] * 6


def test_other_numbers_of_readers_read_all_shards_that_were_not_finished():
    order = ShardOrder(6, 1, 2, 1)  # 3 shards each, a round is an epoch
    later = order.after([[(0, 1)], [(1, 2)]], 3, 1)
    first, second = order.round_shards(0), order.round_shards(1)
    finished = {(0, first[0]), (0, first[1]), (0, first[3]), (0, first[5]), (1, second[1]), (1, second[3])}
    rest = [(turn // 6, later.shard(place)) for place in range(20) if (turn := later.turn(place)) < 12]
    assert set(rest) | finished == {(epoch, shard) for epoch in range(2) for shard in range(6)}
    assert not set(rest) & finished
    assert len(set(rest)) == len(rest)


def test_a_stream_goes_on_with_other_numbers_of_ranks_and_says_so(tmp_path):
    train = stream_of(write_shards(tmp_path / "x"), buffer=4)
    loaders = [train.open(0, 5, rank, 2) for rank in range(2)]
    for _ in range(25):
        before = [next(loader) for loader in loaders]
    states = [loader.state_dict() for loader in loaders]
    alone = train.open(0, 5, 0, 1)
    assert "1 x 1 readers" in alone.load_state_dict(states)
    rest = {row.name for _ in range(30) for row in next(alone).rows}
    unfinished = {row.shard for batch in before for row in batch.rows[-1:]}
    assert {name for name in names_in(train) if name.split("/")[0] in unfinished} <= rest


def broken(rows):
    first, second, third, *others = rows
    return [(first[0], first[1][:40], first[2]), (second[0], second[1], "  "), third, *others]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_rows_that_cannot_be_used_are_counted_and_the_others_are_the_same(kind, tmp_path):
    train = stream_of(write_shards(tmp_path / "x", kind, change=broken))
    loader = train.open(0, 10, 0, 1)
    problems = {problem for _ in range(25) for problem in next(loader).problems}
    reasons = [why.split("(")[0].strip() for _, why in problems]
    whole = set(names_in(stream_of(write_shards(tmp_path / "whole", kind))))
    spoiled = {f"{shard:04d}/{60 * shard + number:05d}" for shard in range(4) for number in range(2)} & whole
    assert {name for name, _ in problems} == spoiled
    assert set(reasons) == {"cannot be read as an image", "has no caption that is text"}


def test_a_shard_that_is_cut_off_is_named(tmp_path):
    folder = write_shards(tmp_path / "x")
    content = (folder / "0001.tar").read_bytes()
    (folder / "0001.tar").write_bytes(content[:20_000])
    table = write_shards(tmp_path / "y", "parquet") / "0002.parquet"
    table.write_bytes(table.read_bytes()[:-100])
    for train, name in ((stream_of(tmp_path / "x"), "0001.tar"), (stream_of(tmp_path / "y"), "0002.parquet")):
        loader = train.open(0, 10, 0, 1)
        assert name in {row for _ in range(20) for row, _ in next(loader).problems}


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_a_shard_that_is_missing_is_refused_by_name(damage, tmp_path):
    folder = write_shards(tmp_path / "x")
    (tmp_path / "list.txt").write_text("".join(f"x/{n:04d}.tar\n" for n in range(4)))
    (folder / "0002.tar").unlink()
    if damage == "empty":
        (folder / "0002.tar").touch()
    with pytest.raises(UserError, match=r"0002\.tar is (missing|empty)"):
        stream_of(tmp_path / "list.txt")


def test_shards_whose_names_say_their_split_keep_it(tmp_path):
    folder = write_shards(tmp_path / "x")
    for number, name in enumerate(("train-0", "train-1", "val-0", "val-1")):
        (folder / f"{number:04d}.tar").rename(folder / f"{name}.tar")
    config = SourceConfig(str(folder), stream=True, workers=0)
    train, validation, test = open_stream(config, ["train", "validation", "test"])
    assert len(train) == 120
    assert [shard.name for shard in train.plan.shards] == ["train-0", "train-1"]
    assert torch.equal(validation.images, test.images)
    assert len(validation) == 120


def test_every_form_of_a_source_names_the_same_shards(tmp_path):
    folder = write_shards(tmp_path / "x", rows=1)
    write_shards(tmp_path / "x2", "parquet", rows=1)
    (tmp_path / "list.txt").write_text("\n".join(f"file://{folder}/{n:04d}.tar" for n in range(4)))
    (folder / "0000.parquet").write_bytes((tmp_path / "x2" / "0000.parquet").read_bytes())  # as img2dataset has them
    forms = [folder, f"{folder}/*.tar", f"{folder}/{{0000..0003}}.tar", tmp_path / "list.txt", f"file://{folder}/*.tar"]
    for form in forms:
        shards = list_shards(SourceConfig(str(form)), Problems("it")).train
        assert [shard.name for shard in shards] == ["0000", "0001", "0002", "0003"], form
    (tmp_path / "empty").mkdir()
    for nothing, words in ((tmp_path / "empty", "names no shards"), (tmp_path / "none.tar", "there is no data set")):
        with pytest.raises(UserError, match=words):
            list_shards(SourceConfig(str(nothing)), Problems("it"))


class Unreliable(http.server.SimpleHTTPRequestHandler):
    """Answers every second request with half of what is asked for, and knows ranges."""

    folder: Path
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        path = self.folder / self.path.lstrip("/")
        if not path.exists():
            self.send_error(404)
            return
        content = path.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if self.requests % 2 else (start + len(content)) // 2
        self.wfile.write(content[start:end])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    handler = type("Handler", (Unreliable,), {"folder": tmp_path})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_shards_behind_a_server_that_breaks_off_give_the_same_batches(server, tmp_path):
    folder = write_shards(tmp_path / "x", shards=2, rows=150)
    assert taken(stream_of(f"{server}/x/{{0000..0001}}.tar"), 3) == taken(stream_of(folder), 3)
    with pytest.raises(UserError, match=r"x/0002\.tar cannot be read \(HTTP Error 404"):
        stream_of(f"{server}/x/{{0000..0002}}.tar")


def test_a_data_set_of_the_hub_gives_the_same_batches(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    folder = write_shards(tmp_path / "x" / "data", shards=2, rows=150)
    with fake_hub.served() as hub:
        fake_hub.point_to(hub, monkeypatch, tmp_path / "cache")
        files = contents(tmp_path / "x") | {"README.md": b"about them"}
        hub.repositories["datasets/somebody/rows"] = {"main": files}
        assert taken(stream_of("somebody/rows"), 3) == taken(stream_of(tmp_path / "x"), 3)
        addresses = "hf://datasets/somebody/rows/data/{0000..0001}.tar"
        assert taken(stream_of(addresses), 3) == taken(stream_of(folder), 3)
        assert set(hub.given) == {"data/0000.tar", "data/0001.tar"}
        with pytest.raises(UserError, match=r"^hf://datasets/somebody/others/\*\* cannot be listed \("):
            stream_of("somebody/others")


def test_a_stream_takes_no_more_memory_than_its_sample_and_its_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "IMAGES", 10)
    train = stream_of(write_shards(tmp_path / "x", rows=150), sample=30)
    assert len(train) == 10
    assert len(train.corpus) == 30
