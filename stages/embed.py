"""The cache of what the frozen CLIP says of a data set: computed once, so that no training step runs CLIP.

A file holds the image embeddings (and those of the mirrored images where they are wanted), and for every caption its
text embedding and its token encodings. It is keyed by hashes of the CLIP and of the data.
"""

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data.dataset import CaptionedImages
from stages.runtime import print0
from unclip.checkpoint import dump_tensors, load_tensors, sha256
from unclip.clip import CLIP, Preprocess, Tokenizer
from unclip.errors import UserError
from unclip.files import write_atomically

CACHE = Path(__file__).resolve().parent.parent / "data" / "cache"
BATCH = 256


@dataclass
class Embedded:
    """A data set as the frozen CLIP sees it."""

    images: Tensor
    """Unit image embeddings (N, D)."""
    flipped: Tensor | None
    """Those of the mirrored images (N, D)."""
    text: Tensor
    """Unit text embeddings (M, D), one a caption of the data set."""
    encodings: Tensor
    """Token encodings (M, L, W)."""
    mask: Tensor
    """(M, L), False for padding."""

    def captions(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Text embeddings, token encodings and mask of the captions ids (B,), cropped to the longest of them.

        `ids` and `lengths` are on the CPU, so that no GPU is waited for.
        """
        longest = int(self.lengths[ids].max())
        ids = ids.to(self.text.device)
        return self.text[ids], self.encodings[ids, :longest], self.mask[ids, :longest]

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each caption (M,)."""
        return self.mask.sum(dim=1).cpu()

    def to(self, device: torch.device) -> "Embedded":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return Embedded(**{name: None if t is None else t.to(device) for name, t in tensors.items()})


def embed_dataset(
    dataset: CaptionedImages,
    clip: CLIP,
    clip_sha256: str,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    device: torch.device,
    flipped: bool = False,
    cache: Path = CACHE,
) -> Embedded:
    """The data set's embeddings from the cache; computed and stored if they are not there, or cannot be read."""
    # Equal weights are not an equal CLIP: the activation, the pooling, the preprocessing or the tokenizer may differ.
    identity = sha256((clip_sha256 + json.dumps(asdict(clip.config)) + tokenizer.to_json()).encode())
    path = cache / f"{identity[:16]}-{dataset.fingerprint[:16]}{'-flipped' if flipped else ''}.safetensors"
    if path.exists():
        try:
            tensors, _ = load_tensors(path)
            return Embedded(**{"flipped": None, **tensors})
        except (UserError, TypeError):
            print0(f"{path} is damaged: computing it again")
    print0(f"embedding {dataset.name}: {len(dataset)} images, {len(dataset.captions)} captions")
    clip = clip.to(device)
    tensors = {"images": _embed_images(dataset.images, clip, preprocess, device)}
    if flipped:
        tensors["flipped"] = _embed_images(dataset.images, clip, preprocess, device, flip=True)
    tensors |= _embed_captions(dataset.captions, clip, tokenizer, device)
    write_atomically(path, dump_tensors(tensors))
    return Embedded(**{"flipped": None, **tensors})


@torch.inference_mode()
def _embed_images(
    images: Tensor, clip: CLIP, preprocess: Preprocess, device: torch.device, flip: bool = False
) -> Tensor:
    parts = (part.flip(-1) if flip else part for part in images.split(BATCH))
    return torch.cat([clip.encode_image(preprocess(part.to(device))).cpu() for part in parts])


@torch.inference_mode()
def _embed_captions(captions: list[str], clip: CLIP, tokenizer: Tokenizer, device: torch.device) -> dict[str, Tensor]:
    ids = tokenizer.encode(captions, clip.config.text.context).to(device)
    parts = [clip.encode_text(part) for part in ids.split(BATCH)]
    text, encodings = (torch.cat([p.cpu() for p in column]) for column in zip(*parts, strict=True))
    return {"text": text, "encodings": encodings, "mask": clip.text.mask(ids).cpu()}
