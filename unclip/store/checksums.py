"""SHA-256, the one checksum of everything that is stored: of bytes, of files, and of what JSON says."""

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256(*parts: bytes | memoryview) -> str:
    """The SHA-256 of bytes, which may be given in several parts, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, which need not fit in memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(content: Any) -> str:
    """The SHA-256 of what JSON says, however it is laid out."""
    return sha256(json.dumps(content, sort_keys=True).encode())


def abbreviated(digest: str) -> str:
    """The first digits of a checksum, for messages."""
    return f"{digest[:12]}.."
