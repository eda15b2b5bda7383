"""Tables of text: CSV, JSON lines and JSON, as people and their programs write them."""

import codecs
import contextlib
import csv
import json
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from data.caption_values import CONTROL
from data.problems import Problems
from unclip.errors import UserError, reason
from unclip.store.files import check_fetched

SUFFIXES = (".jsonl", ".csv", ".tsv", ".json")
SEPARATORS = ",;\t|"
EXCEL = re.compile(r"sep=.", re.IGNORECASE)
"""What Excel writes above a table, to say its separator."""

Row = tuple[str, dict[str | None, Any]]
"""Where it stands, for messages, and its values by column; under None are those for which there is no column."""


def rows(path: Path, name: str, problems: Problems) -> list[Row]:
    """The rows of a table that messages call `name`; those that cannot be read are added to `problems`.

    Raises UserError for a file that is not text.
    """
    check_fetched(path)
    try:
        lines = read_lines(path.read_bytes(), name, problems)
    except UnicodeDecodeError as error:
        problems.add(name, f"is not readable as text ({error.reason} at byte {error.start})")
        return []
    if CONTROL.search(lines[0]):
        raise UserError(f"{path} is not text; expected a table, or another suffix")
    suffix = path.suffix.lower()
    if suffix not in (".json", ".jsonl"):
        return list(_csv(lines, name, problems))
    if _starts_a_list(lines) or (suffix == ".json" and not _are_json(lines)):
        return list(_json("\n".join(lines), name, problems))
    return list(_jsonl(lines, name, problems))


def read_lines(content: bytes, name: str, problems: Problems) -> list[str]:
    """Text by lines, from UTF-8, from UTF-16 that says so, or, line by line and noted, from Windows-1252.

    What is none of these becomes text that `as_captions` refuses. Raises UnicodeDecodeError for broken UTF-16.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16").encode()
    lines, is_text = [], not CONTROL.search(content.decode("latin-1"))
    for line in re.split(rb"\r\n|\r|\n", content.removeprefix(codecs.BOM_UTF8)):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            lines.append(line.decode("cp1252" if is_text else "utf-8", "surrogateescape"))
            if is_text:
                problems.note(
                    name, f"{name} is not UTF-8 throughout; its other lines are read as Windows-1252 (Latin-1) text"
                )
    return lines


def _csv(lines: list[str], name: str, problems: Problems) -> Iterator[Row]:
    """Rows by their line. The separator is the one that gives the first line with anything in it the most columns."""
    before = len(list(takewhile(lambda line: not line.strip() or EXCEL.fullmatch(line.strip()), lines)))
    lines, given = lines[before:], before

    def giving() -> Iterator[str]:
        nonlocal given
        for line in lines:  # the reader's own count leaves out lines at which it fails
            given += 1
            yield f"{line}\n"

    separator = max(SEPARATORS, key=lambda one: len(next(csv.reader(lines[:1], delimiter=one), ())))
    reader = csv.DictReader(
        giving(),
        delimiter=separator,
        skipinitialspace=True,
        strict=True,  # which minds a quote that is not closed
    )
    reader.fieldnames = columns = [column.strip() for column in reader.fieldnames or ()]
    if twice := next((column for column in columns if column and columns.count(column) > 1), None):
        raise UserError(f"{name} has two columns {twice}; rename one")
    while True:
        begins = given + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the next row begins after the line where it gave up
            problems.add(f"{name}:{begins}", f"is not readable as CSV ({error})")
            continue
        yield f"{name}:{given}", {column: value for column, value in row.items() if value is not None}


def _jsonl(lines: list[str], name: str, problems: Problems) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(where, f"is not JSON ({error})")
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            problems.add(where, "is not a JSON object")


def _starts_a_list(lines: list[str]) -> bool:
    """Whether JSON lines are none, but one list of all rows, as some programs name it."""
    first = next(filter(None, map(str.strip, lines)), "")
    return first in ("[", "[{") or (first.startswith("[{") and first.endswith((",", "]")))


def _are_json(lines: list[str]) -> bool:
    """Whether a file of JSON holds an object on each line, rather than one in all."""
    first, second, *_ = [*filter(str.strip, lines), "", ""]
    with contextlib.suppress(ValueError, RecursionError):
        return bool(second) and isinstance(json.loads(first), dict)
    return False


def _json(text: str, name: str, problems: Problems) -> Iterator[Row]:
    """Of a list of objects each, also where an object holds the list; of an object of captions, or of objects, by file
    name, the same; of COCO's its annotations."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.add(name, f"is not JSON ({error})")
        return
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        found = _annotations(found, name)
    elif isinstance(found, dict) and len(lists := list(filter(_is_list_of_objects, found.values()))) == 1:
        [found] = lists
    elif isinstance(found, dict):
        found = [
            {"file_name": file, **(row if isinstance(row, dict) else {"text": row})} for file, row in found.items()
        ]
    for number, row in enumerate(found if isinstance(found, list) else [found], start=1):
        if isinstance(row, dict):
            yield f"{name}, row {number}", row
        else:
            problems.add(f"{name}, row {number}", "is not a JSON object")


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _annotations(found: dict[str, Any], name: str) -> list[Any]:
    """The rows of a file of captions in COCO's form, each annotation with the name of its image's file.

    Raises UserError for other annotations, such as those of boxes.
    """
    try:
        files = {image["id"]: image["file_name"] for image in found["images"]}
        rows = [
            {**row, "file_name": files.get(row["image_id"], ""), "text": row["caption"]} for row in found["annotations"]
        ]
    except (LookupError, TypeError) as error:
        raise UserError(
            f"{name} is not a file of captions in COCO's form: it lacks {reason(error)}; expected images with id and "
            "file_name, and annotations with image_id and caption"
        ) from None
    said = {row["file_name"] for row in rows}
    return rows + [{"file_name": file, "text": ""} for file in files.values() if file not in said]
