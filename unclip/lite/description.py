"""lite.json: what an exported pipeline's networks do not hold, and the checksums of all its files."""

from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.store.checksums import abbreviated, file_sha256
from unclip.store.sealed_json import read_record

DESCRIPTION = "lite.json"
FORMAT = 3
ADVICE = "export the pipeline again"


def read_description(folder: Path) -> dict[str, Any]:
    """Read lite.json. Raises UserError if it is missing or damaged, or if a file has changed since."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} holds no {DESCRIPTION}; write it with: unclip export CHECKPOINT --to onnx")
    description = read_record(path, ADVICE)
    if description.get("format") != FORMAT:
        raise UserError(f"{path} has format {description.get('format')}, but this version reads {FORMAT}; {ADVICE}")
    for name, expected in description["files"].items():
        digest = file_sha256(folder / name) if (folder / name).is_file() else "none"
        if digest != expected:
            raise UserError(
                f"{folder / name} is not the file that {DESCRIPTION} names (SHA-256 {abbreviated(digest)}, not "
                f"{abbreviated(expected)}); {ADVICE}"
            )
    return description
