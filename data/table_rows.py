"""Rows of tables in text files: CSV, JSON lines and JSON, as people and their programs write them."""

import contextlib
import csv
import json
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from data.image_files import IMAGE_SUFFIXES
from data.problems import Problems
from unclip.errors import UserError, reason
from unclip.store.files import check_fetched
from unclip.text import CONTROL, decode_lines

TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".json")
SEPARATORS = "\t,;|"
EXCEL = re.compile(r"sep=.", re.IGNORECASE)
"""The line above a table by which Excel names its separator."""

IMAGE_NAME = re.compile(rf".+({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})(#\d+)?", re.IGNORECASE)
"""The name of an image, which in Flickr8k the number of the caption follows."""
BEGINNING = 2**16
"""Bytes of a table that are read to find its columns."""


class Header(NamedTuple):
    """The columns of a table in CSV, by its first line."""

    separator: str
    columns: list[str]
    is_missing: bool
    """Whether the first line is already a row, which holds the name of an image."""


Row = tuple[str, dict[str | None, Any]]
"""The row's place in messages, and its values by column; those beyond the last column stand under None."""


def read_rows(path: Path, name: str, problems: Problems) -> list[Row]:
    """The rows of a table, which messages call `name`. Rows that cannot be read are added to `problems`.

    Raises UserError for a file that is not text.
    """
    check_fetched(path)
    try:
        lines = decode_noted_lines(path.read_bytes(), name, problems)
    except UnicodeDecodeError as error:
        problems.add(name, f"is not readable as text ({error.reason} at byte {error.start})")
        return []
    if CONTROL.search(lines[0]):
        raise UserError(f"{path} is not text; expected a table, or another suffix")
    suffix = path.suffix.lower()
    if suffix not in (".json", ".jsonl"):
        return list(_parse_csv(lines, name, problems))
    if _starts_list(lines) or (suffix == ".json" and not _is_json_lines(lines)):
        return list(_parse_json("\n".join(lines), name, problems))
    return list(_parse_json_lines(lines, name, problems))


def decode_noted_lines(content: bytes, name: str, problems: Problems) -> list[str]:
    """Decode text into lines by `decode_lines`. Windows-1252 is noted. Raises UnicodeDecodeError as that does."""
    lines, has_windows_lines = decode_lines(content)
    if has_windows_lines:
        problems.note(name, f"{name} is not UTF-8 throughout; its other lines are read as Windows-1252 (Latin-1) text")
    return lines


def read_csv_columns(path: Path) -> list[str]:
    """The columns of a table in CSV, without reading all of it; [] for a file that is not text."""
    with open(path, "rb") as file, contextlib.suppress(UnicodeDecodeError):
        lines, _ = decode_lines(file.read(BEGINNING))
        return _find_header(next((line for line in lines if not _is_above_table(line)), "")).columns
    return []


def _is_above_table(line: str) -> bool:
    return not line.strip() or EXCEL.fullmatch(line.strip()) is not None


def _find_header(line: str) -> Header:
    """Find the columns by the first line of text.

    The separator is the one by which a field is the name of an image, or else the one that makes the most columns.
    """
    fields = {sign: [field.strip() for field in next(csv.reader([line], delimiter=sign), [])] for sign in SEPARATORS}
    for sign in SEPARATORS:
        places = [place for place, field in enumerate(fields[sign]) if IMAGE_NAME.fullmatch(field)]
        if places and len(fields[sign]) == 2:
            columns = ["text", "text"]
            columns[places[0]] = "file_name"
            return Header(sign, columns, is_missing=True)
    separator = max(SEPARATORS, key=lambda sign: len(fields[sign]))
    return Header(separator, fields[separator], is_missing=False)


def _parse_csv(lines: list[str], name: str, problems: Problems) -> Iterator[Row]:
    skipped = len(list(takewhile(_is_above_table, lines)))
    lines = lines[skipped:]
    line_number = skipped

    def counted_lines() -> Iterator[str]:
        nonlocal line_number
        for line in lines:  # the reader's own count leaves out lines at which it fails
            line_number += 1
            yield f"{line}\n"

    header = _find_header(lines[0] if lines else "")
    repeated = next((column for column in header.columns if column and header.columns.count(column) > 1), None)
    if repeated:
        raise UserError(f"{name} has two columns {repeated}; rename one")
    rows = counted_lines()
    if not header.is_missing:
        next(rows, None)
    reader = csv.DictReader(
        rows,
        header.columns,
        delimiter=header.separator,
        skipinitialspace=True,
        strict=True,  # so that a quote that is not closed is an error
        quoting=csv.QUOTE_NONE if header.is_missing and header.separator == "\t" else csv.QUOTE_MINIMAL,
    )
    while True:
        first_line = line_number + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the next row begins after the line at which the reader failed
            problems.add(f"{name}:{first_line}", f"is not readable as CSV ({error})")
            continue
        yield f"{name}:{line_number}", {column: value for column, value in row.items() if value is not None}


def _parse_json_lines(lines: list[str], name: str, problems: Problems) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(place, f"is not JSON ({error})")
            continue
        if isinstance(row, dict):
            yield place, row
        else:
            problems.add(place, "is not a JSON object")


def _starts_list(lines: list[str]) -> bool:
    """Whether a file holds one list of all rows, which some programs name .jsonl too."""
    first = next(filter(None, map(str.strip, lines)), "")
    return first in ("[", "[{") or (first.startswith("[{") and first.endswith((",", "]")))


def _is_json_lines(lines: list[str]) -> bool:
    """Whether a file holds one JSON object per line, rather than one in all."""
    first, second, *_ = [*filter(str.strip, lines), "", ""]
    with contextlib.suppress(ValueError, RecursionError):
        return bool(second) and isinstance(json.loads(first), dict)
    return False


def _parse_json(text: str, name: str, problems: Problems) -> Iterator[Row]:
    """Parse JSON: a list of objects, or an object that holds one such list, COCO's annotations, or file names.

    An object of file names maps each to its caption, or to an object with the other columns.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.add(name, f"is not JSON ({error})")
        return
    rows = content if isinstance(content, list) else [content]
    if isinstance(content, dict):
        lists = [value for value in content.values() if _is_list_of_objects(value)]
        if isinstance(content.get("annotations"), list):
            rows = _coco_rows(content, name)
        elif len(lists) == 1:
            rows = lists[0]
        else:
            rows = [
                {"file_name": file, **(value if isinstance(value, dict) else {"text": value})}
                for file, value in content.items()
            ]
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield f"{name}, row {number}", row
        else:
            problems.add(f"{name}, row {number}", "is not a JSON object")


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _coco_rows(content: dict[str, Any], name: str) -> list[Any]:
    """The captions of a file in COCO's form: each annotation with the name of its image's file.

    An image without captions has a row with an empty one. Raises UserError for other annotations, such as boxes.
    """
    try:
        files = {image["id"]: image["file_name"] for image in content["images"]}
        rows = [
            {**row, "file_name": files.get(row["image_id"], ""), "text": row["caption"]}
            for row in content["annotations"]
        ]
    except (LookupError, TypeError) as error:
        raise UserError(
            f"{name} is not a file of captions in COCO's form: it lacks {reason(error)}; expected images with id and "
            "file_name, and annotations with image_id and caption"
        ) from None
    captioned = {row["file_name"] for row in rows}
    return rows + [{"file_name": file, "text": ""} for file in files.values() if file not in captioned]
