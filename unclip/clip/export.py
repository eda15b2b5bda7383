"""Write a pipeline's CLIP as a Hugging Face folder, which transformers' CLIPModel.from_pretrained opens.

python -m unclip.clip.export checkpoints/fashion-mnist --to hf
"""

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip import signals

    signals.install()

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unclip import cli
from unclip.checkpoint import dump_tensors
from unclip.clip import huggingface
from unclip.clip.pretrained import open_clip_at
from unclip.errors import UserError
from unclip.files import write_atomically, write_json


@dataclass(frozen=True)
class ExportOptions:
    source: Annotated[Path, tyro.conf.Positional]
    """Folder of the pipeline, or of a CLIP."""
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
    clip, tokenizer, _ = open_clip_at(options.source)
    if tokenizer is None:
        raise UserError(f"{options.source} holds no tokenizer, which belongs to what is written")
    config, context = clip.config, clip.config.text.context
    files = {
        "config.json": huggingface.write_config(config, tokenizer.start_id, tokenizer.pad_id),
        "preprocessor_config.json": huggingface.write_preprocess(config),
        "tokenizer_config.json": tokenizer.huggingface_config(context),
    }
    write_atomically(out / "tokenizer.json", tokenizer.framed().to_str(pretty=True))
    for name, content in files.items():
        write_json(out / name, content)
    tensors = huggingface.export_tensors(clip.state_dict())
    write_atomically(out / "model.safetensors", dump_tensors(tensors, {"format": "pt"}))
    print(f"CLIP of {options.source} in {out}")
    return out


if __name__ == "__main__":
    cli.run(lambda: export(cli.parse(ExportOptions, __doc__)))
