"""Write a pipeline's CLIP as a Hugging Face folder, which transformers' CLIPModel.from_pretrained opens.

python -m unclip.clip.export checkpoints/fashion-mnist --to hf
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.clip.foreign.huggingface import export_clip
from unclip.clip.foreign.weight_files import HUB_FILES
from unclip.clip.pretrained import load_bundle
from unclip.errors import UserError
from unclip.store.files import write_atomically
from unclip.store.hub import resolve_source
from unclip.store.sealed_json import write_json
from unclip.store.tensors import dump_tensors


@dataclass(frozen=True)
class ExportOptions:
    source: Annotated[Path, tyro.conf.Positional]
    """Folder of the pipeline, or of a CLIP, or its name OWNER/NAME on the Hugging Face Hub."""
    to: Literal["hf"] = "hf"
    """The format: hf for Hugging Face's CLIPModel."""
    out: Path | None = None
    """Folder to write (default: SOURCE-hf, beside the source)."""


def export(options: ExportOptions) -> Path:
    """Write the CLIP's config, weights, preprocessing and tokenizer. Returns the folder.

    Raises UserError for a folder that is not empty, or a CLIP without a tokenizer or that the format cannot hold.
    """
    out = options.out or options.source.resolve().with_name(f"{options.source.resolve().name}-hf")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name another folder with --out")
    clip, tokenizer, _ = load_bundle(resolve_source(options.source, HUB_FILES))
    if tokenizer is None:
        raise UserError(f"{options.source} holds no tokenizer, which belongs to what is written; put its files there")
    files, tensors, differences = export_clip(clip.config, clip.state_dict(), tokenizer)
    for name, content in files.items():
        write_json(out / name, content)
    write_atomically(out / "model.safetensors", dump_tensors(tensors, {"format": "pt"}))
    print(f"CLIP of {options.source} in {out}")
    for difference in differences:
        print(f"in transformers, {difference}")
    return out


def main(argv: Sequence[str] | None = None) -> None:
    export(parse(ExportOptions, __doc__, argv=argv))


if __name__ == "__main__":
    run(main)
