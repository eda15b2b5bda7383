"""The rates of streams are measured on what trainings read, and on made-up shards that they can read."""

import io

import pytest
from conftest import assert_one_error_line
from PIL import Image
from shards_of_rows import write_shards as write_others

from data.records import Columns
from data.stream import rate
from data.stream.made_up import write_shards
from data.stream.rows import read_rows
from data.stream.shard_list import Shard

pytestmark = pytest.mark.usefixtures("own_caches")


def test_rates_and_memory_are_printed_for_each_size_and_number_of_workers(script, tmp_path):
    source = write_others(tmp_path / "x", rows=150)
    finished = script("data.stream.rate", source, "--sizes", 8, "--workers", 0, 1, "--rows", 60, "--batch", 20)
    assert finished.code == 0, finished.err
    heads, *lines = [line.split() for line in finished.out.splitlines()]
    assert heads[:4] == ["pixels", "workers", "rows", "rows/s"]
    assert [line[:3] for line in lines] == [["8", workers, "60"] for workers in "01"]
    for line in lines:
        rate, core_rate, memory, of_worker = (int(cell.replace(",", "")) for cell in line[3:])
        assert min(rate, core_rate) > 0
        assert 10 < memory < 10_000
        assert (of_worker > 0) == (line[1] == "1")


def test_memory_is_told_whenever_the_rows_have_doubled():
    class Endless:
        def __next__(self):
            return type("Batch", (), {"rows": range(2500)})

    assert [found.rows for found in rate.measure(Endless(), 50_000)] == [10_000, 20_000, 40_000, 50_000]


def test_made_up_shards_hold_jpegs_of_the_size_with_their_captions(tmp_path):
    paths = sorted(write_shards(tmp_path / "x", size=24, shards=2, rows=4).iterdir())
    examples = [example["row"] for path in paths for example in read_rows([Shard(path.stem, str(path))], Columns())]
    assert [row.name for row in examples] == [f"0000{i // 4}/0000000{i}" for i in range(8)]
    assert len({row.image for row in examples}) == 8
    for row in examples:
        with Image.open(io.BytesIO(row.image)) as image:
            assert (image.format, image.size) == ("JPEG", (24, 24))
        assert " on a " in row.captions[0]


def test_a_source_that_is_no_stream_is_one_line(script, tmp_path):
    assert_one_error_line(script("data.stream.rate", tmp_path), "names no shards")
