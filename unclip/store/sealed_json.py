"""JSON files, and records: JSON that holds the checksum of its own content, so that any change is noticed."""

import json
from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.store.checksums import json_sha256
from unclip.store.files import write_atomically

LARGEST_JSON = 2**26
"""Bytes of the largest JSON file that is read: far more than any file of a pipeline has."""


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError if it is not JSON, too large, or nested too deep."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); restore it or train that part again") from error


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with the checksum of its content under "checksum"."""
    write_json(path, {**content, "checksum": json_sha256(content)})


def read_record(path: Path, advice: str = "restore it or train that part again") -> dict[str, Any]:
    """The content of a record, without its checksum. Raises UserError, ending in `advice`, if it has changed."""
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("checksum", None) != json_sha256(content):
        raise UserError(f"{path} has changed since it was written: its checksum does not match; {advice}")
    return content
