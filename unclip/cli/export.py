"""Write a pipeline, or its CLIP, in a format of other libraries.

unclip export checkpoints/fashion-mnist --to hf      # CLIP alone: transformers' CLIPModel.from_pretrained opens it
unclip export checkpoints/fashion-mnist --to onnx    # all networks: unclip.lite draws from them without PyTorch
unclip export checkpoints/fashion-mnist --to web     # a page of static files that draws in the visitor's browser
unclip export checkpoints/fashion-mnist checkpoints/emoji --to web --out site    # the same of several pipelines
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unclip.cli.options import parse
from unclip.errors import UserError


@dataclass(frozen=True)
class ExportOptions:
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folder of the pipeline, or of a CLIP, or its name OWNER/NAME on the Hugging Face Hub; for web, one or several."""
    to: Literal["hf", "onnx", "web"] = "hf"
    """The format: hf for Hugging Face's CLIPModel, onnx for ONNX Runtime, web for a static site."""
    out: Path | None = None
    """Folder to write (default: SOURCE-hf, SOURCE-onnx or SOURCE-web, beside the source)."""
    runtime: Path | None = None
    """For web: folder with the files of ONNX Runtime Web, dist of its npm package (default: npm fetches them)."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(ExportOptions, __doc__, argv=argv)
    if not options.sources:
        raise UserError("name the folder of a pipeline to export, such as checkpoints/fashion-mnist")
    if len(options.sources) > 1 and options.to != "web":
        raise UserError(f"--to {options.to} takes one pipeline, not {len(options.sources)}")
    source = options.sources[0]
    out = options.out or source.resolve().with_name(f"{source.resolve().name}-{options.to}")
    if options.runtime and options.to != "web":
        raise UserError("--runtime goes with --to web")
    if options.to == "web":
        from unclip.web.export import export_web

        page = export_web(options.sources, out, options.runtime)
        print(f"{page}; to look at it: python -m http.server --bind 127.0.0.1 --directory {out}")
        return
    if options.to == "onnx":
        from unclip.onnx.export import export_onnx

        export_onnx(source, out)
        print(f"{source} in {out}; draw from it with unclip.lite.Lite({str(out)!r})")
        return

    from unclip.clip.export import export

    differences = export(source, out)
    print(f"CLIP of {source} in {out}")
    for difference in differences:
        print(f"in transformers, {difference}")
