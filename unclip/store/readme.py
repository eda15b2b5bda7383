"""The README.md of a pipeline that was trained here; a published one has a model card in its place."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from unclip.store.checksums import sha256
from unclip.store.files import write_atomically
from unclip.store.manifest import Manifest
from unclip.store.markdown import one_line, plain, table

MARK = re.compile(rb"<!-- unclip wrote what follows, of the SHA-256 (?P<digest>[0-9a-f]{64}) -->\n")


def plain_readme(pipeline: Path, manifests: Mapping[str, Manifest]) -> str:
    """A table of the parts, and the command that draws from the pipeline, below a mark by which it is known as ours."""
    rows = []
    for part, m in manifests.items():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in m.figures.items())
        rows.append([part, m.step, m.sha256[:12], figures])
    parts = table(["part", "steps", "SHA-256", "validation figures"], rows)
    command = ["python", "sample.py", "--checkpoint", str(pipeline), example_caption(manifests)]
    text = f"# unCLIP pipeline {plain(pipeline.name)}\n\n{parts}\n    {one_line(shlex.join(command))}\n"
    return f"<!-- unclip wrote what follows, of the SHA-256 {sha256(text.encode())} -->\n{text}"


def write_readme(pipeline: Path, manifests: Mapping[str, Manifest]) -> None:
    """Write a pipeline's README.md, unless somebody else wrote the one that is there, or changed it."""
    path = pipeline / "README.md"
    text = plain_readme(pipeline, manifests).encode()
    present = path.read_bytes() if path.is_file() else b""
    if not os.path.lexists(path) or (present != text and is_own_readme(present)):
        write_atomically(path, text)


def is_own_readme(content: bytes) -> bool:
    """Whether a README.md is as `plain_readme` made it, so that nothing of anybody's is lost with it."""
    mark = MARK.match(content)
    return mark is not None and sha256(content[mark.end() :]) == mark["digest"].decode()


def example_caption(manifests: Mapping[str, Manifest]) -> str:
    """A caption of the training data, or a placeholder if no manifest names one."""
    return next((m.data["example"] for m in manifests.values() if "example" in m.data), "a caption")
