"""Open a CLIP with what belongs to it, its tokenizer and its preprocessing: one of ours, or a pretrained one.

Ours is checkpoints/NAME, or the `clip` folder in it; for other projects' see `unclip.clip.foreign`.
"""

import os
from pathlib import Path
from typing import NamedTuple

from unclip.clip import foreign
from unclip.clip.foreign.tokenizer_files import check_tokenizer
from unclip.clip.foreign.weight_files import HUB_FILES
from unclip.clip.model import CLIP, CLIPConfig
from unclip.clip.preprocess import Preprocess
from unclip.clip.tokenizer import Tokenizer
from unclip.errors import UserError
from unclip.fields import from_dict
from unclip.store.checksums import sha256
from unclip.store.files import write_atomically
from unclip.store.hub import is_hub_name, resolve_source
from unclip.store.manifest import Manifest, read_manifest
from unclip.store.parts import load_part, save_part
from unclip.store.tensors import dump_tensors


class Bundle(NamedTuple):
    """A CLIP with what belongs to it."""

    clip: CLIP
    tokenizer: Tokenizer | None
    manifest: Manifest
    """What it has, or would have, in a pipeline."""


def load_clip(path: str | Path) -> tuple[CLIP, Tokenizer | None, Preprocess]:
    """Open the CLIP at a path, or of that name on the Hub, for inference: eval mode, frozen, on the CPU.

    The tokenizer is None where weights come without one; a pipeline takes no such CLIP.
    Raises UserError if there is none, if it is damaged, or if our module has no place for something in it.
    """
    clip, tokenizer, _ = load_bundle(resolve_source(path, HUB_FILES))
    vision = clip.config.vision
    return clip, tokenizer, Preprocess(vision.image_size, vision.channels, clip.config.preprocess)


def load_bundle(path: Path) -> Bundle:
    """The CLIP at a path, in our format or another."""
    if (folder := _own_folder(path)) is not None:
        return _load_own(folder)
    clip, tokenizer, origin = foreign.load(path)
    manifest = Manifest("clip", training={"pretrained": str(path), **origin}, complete=True)
    if tokenizer:
        manifest.parents = {"tokenizer": sha256(tokenizer.to_json().encode())}
    return Bundle(clip.eval().requires_grad_(False), tokenizer, manifest)


def _own_folder(path: Path) -> Path | None:
    """The folder of a CLIP in our own format, in a pipeline or by itself; None for what is of another format."""
    if (path / "clip").is_dir() or not path.exists():
        return path / "clip"
    return None if path.is_file() or foreign.is_known(path) or not (path / "config.json").is_file() else path


def _load_own(folder: Path) -> Bundle:
    if (part := read_manifest(folder).part) != "clip":
        raise UserError(f"{folder} holds a {part}, not a CLIP; give the folder of its pipeline, {folder.parent}")
    clip, manifest = load_part(folder, CLIP)
    path = folder.parent / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    found, expected = sha256(path.read_bytes()), manifest.parents.get("tokenizer", "unknown")
    if found != expected:
        raise UserError(
            f"{path} has the SHA-256 {found[:12]}.., but the CLIP beside it was trained with {expected[:12]}..; "
            "restore the tokenizer that belongs to it"
        )
    check_tokenizer(tokenizer, clip.config.text, folder.parent)
    return Bundle(clip, tokenizer, manifest)


def adopt(source: str, pipeline: Path, revision: str | None = None) -> None:
    """Copy the CLIP at a path, or of that name on the Hub, into a pipeline in our format, where it is not there yet.

    Raises UserError if the pipeline holds another CLIP, or if this one comes without a tokenizer.
    """
    path = resolve_source(source, HUB_FILES, revision)
    if not path.exists():
        raise UserError(
            f"there is no folder or file {source}; expected the path of a CLIP, or its name OWNER/NAME on the Hugging "
            "Face Hub"
        )
    clip, tokenizer, manifest = load_bundle(path)
    if tokenizer is None:
        raise UserError(f"{source} holds no tokenizer; put tokenizer.json, or vocab.json with merges.txt, beside it")
    ours = sha256(dump_tensors(clip.state_dict()))
    if (pipeline / "clip" / "config.json").is_file():
        theirs = read_manifest(pipeline / "clip")
        same = theirs.parents.get("tokenizer") == manifest.parents["tokenizer"]
        if theirs.sha256 != ours or not same or from_dict(CLIPConfig, theirs.model, str(pipeline)) != clip.config:
            raise UserError(
                f"{pipeline} already holds a CLIP, {theirs.sha256[:12]}.., and it is not that of {source}, "
                f"{ours[:12]}..; choose another --out"
            )
        return
    if "pretrained" in manifest.training:
        place = source if is_hub_name(source) else os.path.abspath(source)
        manifest.training |= {"pretrained": place, "revision": revision}
    manifest.provenance = {}  # that of the first part that is trained here counts
    write_atomically(pipeline / "tokenizer.json", tokenizer.to_json())
    save_part(pipeline / "clip", clip, manifest)
