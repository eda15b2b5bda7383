"""Open a CLIP with its tokenizer and its preprocessing: one of this project, or a pretrained one.

A CLIP of this project is the folder of a pipeline, or the `clip` folder in it; `unclip.clip.foreign` reads others.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from unclip.clip import foreign
from unclip.clip.foreign.tokenizer_files import check_tokenizer
from unclip.clip.foreign.weight_files import HUB_FILES
from unclip.clip.model import CLIP, CLIPConfig
from unclip.clip.preprocess import Preprocess
from unclip.clip.tokenizer import Tokenizer
from unclip.errors import UserError, shown
from unclip.fields import from_dict
from unclip.fitting import Fit
from unclip.store.checksums import refuse_changed_line_endings, sha256
from unclip.store.files import member
from unclip.store.hub import is_hub_name, resolve_source
from unclip.store.index import check_free, write_index
from unclip.store.manifest import Manifest, read_manifest, recorded_fit
from unclip.store.parts import load_part, save_part
from unclip.store.tensors import dump_tensors


class CLIPBundle(NamedTuple):
    """A CLIP with all that belongs to it."""

    clip: CLIP
    tokenizer: Tokenizer | None
    manifest: Manifest
    """Its manifest in a pipeline; for a foreign CLIP, the manifest that it would have there."""


def load_clip(path: Any, processor: Any = None) -> tuple[CLIP, Tokenizer | None, Preprocess]:
    """Open a CLIP for inference: in eval mode, frozen, on the CPU.

    The tokenizer is None if the weights come without one; a pipeline cannot use such a CLIP.

    Args:
        path: its path, or its name on the Hub; or a CLIPModel of transformers, which is copied.
        processor: the CLIPProcessor that belongs to a CLIPModel, for its tokenizer and its preprocessing.

    Raises UserError if there is no CLIP, if it is damaged, or if our module has no place for something in it.
    """
    if hasattr(path, "save_pretrained") and not isinstance(path, (str, Path)):
        return _load_clip_model(path, processor)
    if not isinstance(path, (str, Path)):
        raise UserError(f"load_clip takes a path, a name on the Hub, or a CLIPModel of transformers, not {shown(path)}")
    clip, tokenizer, manifest = load_clip_bundle(resolve_source(path, HUB_FILES))
    vision = clip.config.vision
    preprocess = Preprocess(vision.image_size, vision.channels, clip.config.preprocess, fit_of_clip(manifest))
    return clip, tokenizer, preprocess


def _load_clip_model(model: Any, processor: Any) -> tuple[CLIP, Tokenizer | None, Preprocess]:
    """Read an object of transformers from the files that it writes of itself."""
    if type(model).__name__ != "CLIPModel":
        raise UserError(f"of the models of transformers load_clip takes a CLIPModel, not a {type(model).__name__}")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        return load_clip(folder)


def fit_of_clip(manifest: Manifest) -> Fit | None:
    """How the images were made square that a CLIP was trained on here; None for a CLIP of another project."""
    return None if "pretrained" in manifest.training else recorded_fit(manifest)


def load_clip_bundle(path: Path) -> CLIPBundle:
    """Open the CLIP at a path, in our format or another."""
    folder = _find_own_folder(path)
    if folder is not None:
        return _load_own_bundle(folder)
    clip, tokenizer, origin = foreign.load_foreign_clip(path)
    manifest = Manifest("clip", training={"pretrained": str(path), **origin}, complete=True)
    if tokenizer:
        manifest.parents = {"tokenizer": sha256(tokenizer.to_json().encode())}
    return CLIPBundle(clip.eval().requires_grad_(False), tokenizer, manifest)


def _find_own_folder(path: Path) -> Path | None:
    """The folder of a CLIP in our format, within a pipeline or by itself; None for a CLIP of another format."""
    if (path / "clip").is_dir() or not path.exists():
        return member(path, "clip")
    if path.is_file() or foreign.is_foreign_clip(path) or not (path / "config.json").is_file():
        return None
    return path


def _load_own_bundle(folder: Path) -> CLIPBundle:
    part = read_manifest(folder).part
    if part != "clip":
        raise UserError(f"{folder} holds a {part}, not a CLIP; give the folder of its pipeline, {folder.parent}")
    clip, manifest = load_part(folder, CLIP)
    path = member(folder.parent, "tokenizer.json")
    tokenizer = Tokenizer.load(path)
    digest = sha256(path.read_bytes())
    expected = manifest.parents.get("tokenizer", "unknown")
    refuse_changed_line_endings(path, digest, expected)
    if digest != expected:
        raise UserError(
            f"{path} has the SHA-256 {digest[:12]}.., but the CLIP beside it was trained with {expected[:12]}..; "
            "restore the tokenizer that belongs to it"
        )
    check_tokenizer(tokenizer, clip.config.text, folder.parent)
    return CLIPBundle(clip, tokenizer, manifest)


def adopt_clip(source: str, pipeline: Path, revision: str | None = None) -> None:
    """Copy the CLIP at a path, or of a name on the Hub, into a pipeline in our format, unless it is there already.

    Raises UserError if the pipeline holds another CLIP or files of others, or if this one comes without a tokenizer.
    """
    if not (pipeline / "clip" / "config.json").is_file():
        check_free(pipeline, "clip", ["tokenizer.json"])
    path = resolve_source(source, HUB_FILES, revision)
    if not path.exists():
        raise UserError(
            f"there is no folder or file {source}; expected the path of a CLIP, or its name OWNER/NAME on the Hugging "
            "Face Hub"
        )
    clip, tokenizer, manifest = load_clip_bundle(path)
    if tokenizer is None:
        raise UserError(f"{source} holds no tokenizer; put tokenizer.json, or vocab.json with merges.txt, beside it")
    if (pipeline / "clip" / "config.json").is_file():
        _check_same_clip(source, pipeline, clip, manifest)
        return
    if "pretrained" in manifest.training:
        origin = source if is_hub_name(source) else os.path.abspath(source)
        manifest.training |= {"pretrained": origin, "revision": revision}
    manifest.provenance = {}  # the first part that is trained here records where its data came from
    write_index(pipeline, leave_out="clip", files={"tokenizer.json": tokenizer.to_json()})
    save_part(pipeline / "clip", clip, manifest)


def _check_same_clip(source: str, pipeline: Path, clip: CLIP, manifest: Manifest) -> None:
    """Raise UserError unless the pipeline's CLIP is this one, with the same tokenizer and config."""
    present = read_manifest(pipeline / "clip")
    digest = sha256(dump_tensors(clip.state_dict()))
    same_weights = present.sha256 == digest
    same_tokenizer = present.parents.get("tokenizer") == manifest.parents["tokenizer"]
    if not (same_weights and same_tokenizer) or from_dict(CLIPConfig, present.model, str(pipeline)) != clip.config:
        raise UserError(
            f"{pipeline} already holds a CLIP, {present.sha256[:12]}.., and it is not that of {source}, "
            f"{digest[:12]}..; choose another --out"
        )
