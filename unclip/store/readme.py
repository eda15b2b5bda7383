"""The README.md of a pipeline that was trained here; a published one has a model card in its place."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from unclip.store.manifest import Manifest


def plain_readme(pipeline: Path, manifests: Mapping[str, Manifest]) -> str:
    """A table of the parts, and the command that draws from the pipeline."""
    table = ["| part | steps | SHA-256 | validation figures |", "|---|---|---|---|"]
    for part, m in manifests.items():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in m.figures.items())
        table.append(f"| {part} | {m.step} | `{m.sha256[:12]}` | {figures} |")
    usage = f"    python sample.py --checkpoint {pipeline} {shlex.quote(example_caption(manifests))}"
    return "\n".join([f"# unCLIP pipeline {pipeline.name}", "", *table, "", usage, ""])


def example_caption(manifests: Mapping[str, Manifest]) -> str:
    """A caption of the training data, or a placeholder if no manifest names one."""
    return next((m.data["example"] for m in manifests.values() if "example" in m.data), "a caption")
