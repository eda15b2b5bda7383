"""Checksums of everything that is stored: SHA-256 of bytes, of files and of what JSON says; XXH3 of training states."""

import hashlib
import json
from pathlib import Path
from typing import Any

from unclip.errors import UserError


def sha256(*parts: bytes | memoryview) -> str:
    """The SHA-256 of bytes, which may be given in several parts, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def xxh3(*parts: bytes | memoryview) -> str:
    """The XXH3 of bytes, of 128 bits, in hexadecimal.

    It finds damage as surely as SHA-256 in a tenth of the time. It names nothing that others rely on.
    """
    import xxhash  # of training alone

    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def file_xxh3(path: Path) -> str:
    """The XXH3 of a file, which need not fit in memory."""
    import xxhash  # of training alone

    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, which need not fit in memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_changed_line_endings(path: Path, digest: str, expected: str) -> None:
    """Raise UserError if a text file has another SHA-256 than expected only because of its line endings."""
    if digest == expected:
        return
    unix = path.read_bytes().replace(b"\r\n", b"\n")
    if expected in (sha256(unix), sha256(unix.replace(b"\n", b"\r\n"))):
        raise UserError(
            f"{path} has other line endings than when it was written, as git gives with core.autocrlf=true; copy it "
            f"again byte by byte, or delete it and give: git -c core.autocrlf=false checkout -- {path}"
        )


def json_sha256(content: Any) -> str:
    """The SHA-256 of what JSON says, however it is laid out."""
    return sha256(json.dumps(content, sort_keys=True).encode())


def abbreviated(digest: str) -> str:
    """The first digits of a checksum, for messages."""
    return f"{digest[:12]}.."
