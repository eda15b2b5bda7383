"""The rows of a shard: images as bytes, with their captions, in the order of the file."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data.caption_values import as_captions
from data.class_captions import class_caption
from data.problems import Problems
from data.records import Columns
from data.shards import choose_image, list_samples, read_captions
from data.splits import split_of_key
from data.stream.fetching import local_copy
from data.stream.shard_list import Shard
from unclip.errors import reason

KEYS = ("__key__", "key")
"""Columns of a table that name its rows; where there is none, a row is named by its number."""
ROWS = 64
"""Rows of a table that are read at once."""


class Row(NamedTuple):
    """A captioned image as a shard holds it, or reasons why there is none."""

    shard: str
    """The name of its shard."""
    index: int
    """Its number in the shard, of all that are there; -1 for reasons that concern the shard."""
    name: str
    """The key of the row: the shard's name, and its own in the shard."""
    image: bytes | None
    """An image file; None if the row cannot be used."""
    captions: tuple[str, ...]
    problems: tuple[tuple[str, str], ...] = ()
    """The faults of this row, and of those before it that are left out."""


Reader = Iterator[tuple[str, Callable[[], tuple[bytes | None, tuple[str, ...]]]]]
"""The key of each row, and how to read its image and captions."""


def read_rows(shards: list[Shard], columns: Columns, split: str | None = None) -> Iterator[dict[str, Row]]:
    """The rows of one shard, each as a dictionary, which is what `datasets` wants; with `split` only those of a split.

    The hash of a row's key says which split it is in. Damage ends the shard, and is reported in a last row. Raises
    UserError if the shard is out of reach.
    """
    [shard] = shards
    problems = Problems(shard.address)
    with local_copy(shard.address) as path:
        try:
            read_shard = _read_tar if PurePosixPath(shard.address).suffix.lower() == ".tar" else _read_table
            for index, (key, read) in enumerate(read_shard(path, shard, columns, problems)):
                name = f"{shard.name}/{key}"
                if split is None or split_of_key(name) == split:
                    image, captions = read()
                    yield {"row": Row(shard.name, index, name, image, captions, _taken(problems))}
        except Exception as error:  # a damaged file raises many kinds
            problems.add(Path(shard.address).name, f"cannot be read, or not to its end ({reason(error)})")
    if problems.rows:
        yield {"row": Row(shard.name, -1, shard.name, None, (), _taken(problems))}


def _taken(problems: Problems) -> tuple[tuple[str, str], ...]:
    """The problems so far, which are then forgotten."""
    rows = tuple(problems.rows)
    problems.rows.clear()
    return rows


def _read_tar(path: Path, shard: Shard, columns: Columns, problems: Problems) -> Reader:
    for key, files in list_samples(path, problems).items():

        def read(files=files, name=f"{shard.name}/{key}"):
            image = choose_image(files, name, columns, problems)
            captions = read_captions(files, name, columns, problems) if image else ()
            return files[image].read_bytes() if captions else None, captions

        yield key, read


def _read_table(path: Path, shard: Shard, columns: Columns, problems: Problems) -> Reader:
    schema, batches = _open_table(path, shard)
    names = schema.names
    image_column = columns.find_image(shard.address, names, problems)
    caption_column = columns.find_caption(shard.address, names, problems)
    key_column = next((name for name in KEYS if name in names), None)
    classes = _class_names(schema, caption_column)
    chosen = list(dict.fromkeys([image_column, caption_column, *filter(None, [key_column])]))
    number = 0
    for batch in batches(chosen):
        for values in batch.select(chosen).to_pylist():
            key = f"{number:09d}" if key_column is None else str(values[key_column])
            name = f"{shard.name}/{key}"
            yield key, partial(_read_values, values[image_column], values[caption_column], classes, name, problems)
            number += 1


def _read_values(
    image: Any, caption: Any, classes: list[str], name: str, problems: Problems
) -> tuple[bytes | None, tuple[str, ...]]:
    """The image and the captions of a row of a table."""
    if classes:
        caption = class_caption(classes[caption]) if caption in range(len(classes)) else None
    captions = as_captions(caption, problems)
    content = image.get("bytes") if isinstance(image, dict) else image
    if not captions:
        problems.add(name, "has no caption that is text")
    elif not isinstance(content, bytes):
        problems.add(name, "holds no bytes of an image, which is how a stream reads them")
        content = None
    return content if captions else None, captions


def _open_table(path: Path, shard: Shard) -> tuple[Any, Callable[[list[str]], Iterator[Any]]]:
    """The schema of a table, and a function that reads some of its columns bit by bit."""
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    if shard.address.lower().endswith(".parquet"):
        file = pq.ParquetFile(path)
        return file.schema_arrow, lambda names: file.iter_batches(ROWS, columns=names)
    content = pa.memory_map(str(path))
    try:
        stream = pa.ipc.open_stream(content)
        return stream.schema, lambda _: _sliced(stream)
    except pa.ArrowInvalid:
        table = pa.ipc.open_file(content)
        return table.schema, lambda _: _sliced(table.get_batch(i) for i in range(table.num_record_batches))


def _sliced(batches: Any) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, len(batch), ROWS):
            yield batch.slice(start, ROWS)


def _class_names(schema: Any, column: str) -> list[str]:
    """The names of a column's classes, if `datasets` has noted that it holds class numbers."""
    import datasets  # slow to import

    feature = datasets.Features.from_arrow_schema(schema)[column]
    return feature.names if isinstance(feature, datasets.ClassLabel) else []
