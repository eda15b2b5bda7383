"""The same made-up rows as shards of every kind that a stream reads."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from own_images import caption, picture

from data.source_config import SourceConfig
from data.stream.streamed_images import StreamedImages, open_stream

Rows = list[tuple[str, bytes, str]]
"""Keys, image files and captions."""


def rows_of(shard: int, count: int) -> Rows:
    rows = []
    for number in range(shard * count, (shard + 1) * count):
        content = io.BytesIO()
        picture(number, (8, 8)).save(content, "PNG")
        rows.append((f"{number:05d}", content.getvalue(), caption(number)))
    return rows


def write_tar(path: Path, rows: Rows) -> None:
    with tarfile.open(path, "w") as file:
        for key, image, text in rows:
            for suffix, content in (("png", image), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def as_table(rows: Rows) -> pa.Table:
    images = [{"bytes": image, "path": None} for _, image, _ in rows]
    return pa.table({"key": [row[0] for row in rows], "image": images, "text": [row[2] for row in rows]})


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(as_table(rows), path, row_group_size=7)


def write_arrow(path: Path, rows: Rows) -> None:
    table = as_table(rows)
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table)


WRITERS = {"tar": write_tar, "parquet": write_parquet, "arrow": write_arrow}


def write_shards(folder: Path, kind: str = "tar", shards: int = 4, rows: int = 60, change=lambda rows: rows) -> Path:
    """Write shards into a new folder; `change` may break the rows of each."""
    folder.mkdir()
    for shard in range(shards):
        WRITERS[kind](folder / f"{shard:04d}.{kind}", change(rows_of(shard, rows)))
    return folder


def stream_of(source: object, **options) -> StreamedImages:
    """The training images of a stream without workers."""
    options = {"workers": 0, "buffer": 16, "sample": 200, "stream": True} | options
    [train] = open_stream(SourceConfig(str(source), **options), ["train"])
    return train


def taken(train: StreamedImages, count: int, size: int = 5, rank: int = 0, ranks: int = 1) -> list[list[str]]:
    """The keys of the rows in the first batches that a rank takes."""
    loader = train.open(0, size, rank, ranks)
    return [[row.name for row in next(loader).rows] for _ in range(count)]


def names_in(train: StreamedImages) -> Iterator[str]:
    """The keys of all rows for training, each once."""
    from data.stream.rows import read_rows

    for shard in train.plan.shards:
        for example in read_rows([shard], train.plan.columns, train.plan.split):
            if example["row"].image is not None:
                yield example["row"].name
