"""The folders that downloads and caches go to. Git ignores both."""

import os
from pathlib import Path

RAW = Path(__file__).resolve().parent / "raw"
"""Downloaded files, one folder per source."""
CACHE = Path(os.environ.get("UNCLIP_CACHE") or Path(__file__).resolve().parent / "cache")
"""Decoded images, unpacked archives, embeddings and lists of problems; all of it can be computed again."""
