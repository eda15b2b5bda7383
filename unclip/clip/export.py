"""Export of a CLIP to the files of another library."""

from dataclasses import replace
from pathlib import Path

from unclip.clip.foreign.huggingface import export_clip
from unclip.clip.foreign.weight_files import HUB_FILES
from unclip.clip.pretrained import fit_of_clip, load_clip_bundle
from unclip.errors import UserError
from unclip.store.files import write_atomically
from unclip.store.hub import resolve_source
from unclip.store.sealed_json import write_json
from unclip.store.tensors import dump_tensors


def export(source: Path, out: Path) -> list[str]:
    """Write a CLIP's config, weights, preprocessing and tokenizer as a Hugging Face folder.

    Args:
        source: folder of a pipeline or of a CLIP, or its name on the Hub.
        out: folder to write; it must be empty, or not exist.

    Returns what the exported CLIP does differently in transformers, a sentence each. Raises UserError for a folder that
    is not empty, and for a CLIP without a tokenizer or that the format cannot hold.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name another folder with --out")
    clip, tokenizer, manifest = load_clip_bundle(resolve_source(source, HUB_FILES))
    if tokenizer is None:
        raise UserError(f"{source} holds no tokenizer, which belongs to what is written; put its files there")
    config = clip.config
    fit = fit_of_clip(manifest)
    if fit == "crop":
        config = replace(config, preprocess=replace(config.preprocess, resize="shortest", cut="floor"))
    files, tensors, differences = export_clip(config, clip.state_dict(), tokenizer)
    if fit == "pad":
        differences.append("oblong images are stretched; make them square with white margins first")
    for name, content in files.items():
        write_json(out / name, content)
    write_atomically(out / "model.safetensors", dump_tensors(tensors, {"format": "pt"}))
    return differences
