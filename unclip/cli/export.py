"""Write a pipeline's CLIP as a Hugging Face folder, which transformers' CLIPModel.from_pretrained opens.

unclip export checkpoints/fashion-mnist --to hf
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unclip.cli.options import parse


@dataclass(frozen=True)
class ExportOptions:
    source: Annotated[Path, tyro.conf.Positional]
    """Folder of the pipeline, or of a CLIP, or its name OWNER/NAME on the Hugging Face Hub."""
    to: Literal["hf"] = "hf"
    """The format: hf for Hugging Face's CLIPModel."""
    out: Path | None = None
    """Folder to write (default: SOURCE-hf, beside the source)."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(ExportOptions, __doc__, argv=argv)

    from unclip.clip.export import export

    out = options.out or options.source.resolve().with_name(f"{options.source.resolve().name}-hf")
    differences = export(options.source, out)
    print(f"CLIP of {options.source} in {out}")
    for difference in differences:
        print(f"in transformers, {difference}")
