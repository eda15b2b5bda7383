"""A data set as the frozen CLIP sees it: computed once and cached, so that no training step runs CLIP.

The cache of a data set is a folder named after hashes of the CLIP and of the data, with an array in each file: the
image embeddings, and for every caption its text embedding and the encodings of its tokens, end to end. Arrays are
mapped into memory, so that only what batches ask for is read.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.dataset import CaptionedImages
from data.paths import CACHE
from stages import runtime
from stages.runtime import print0
from unclip.clip import CLIP, Preprocess, TextFeatures, Tokenizer
from unclip.errors import UserError, reason
from unclip.store.checkpoint import sha256
from unclip.store.files import (
    file_sha256,
    flush_folder,
    make_folder,
    partial_name,
    read_record,
    remove_leftovers,
    write_record,
)

BATCH = 256
ARRAYS = ("embeddings", "text_embeddings", "tokens", "token_starts")


@dataclass
class EmbeddedImages:
    """Captioned images, with what the frozen CLIP says of them. All tensors are on the CPU."""

    data: CaptionedImages
    embeddings: Tensor
    """Unit image embeddings (N, D)."""
    text_embeddings: Tensor
    """Unit text embeddings (M, D), one per caption of the data set."""
    tokens: Tensor
    """Token encodings of all captions, end to end, (tokens, W)."""
    token_starts: Tensor
    """(M + 1,), where each caption's tokens begin, and the last's end."""

    def __len__(self) -> int:
        return len(self.data)

    def text_features(self, caption_ids: Tensor) -> TextFeatures:
        """Features of the captions with these numbers (B,), as long as the longest of them."""
        starts = self.token_starts[caption_ids, None]  # (B, 1)
        lengths = self.token_starts[caption_ids + 1, None] - starts  # (B, 1)
        places = torch.arange(int(lengths.max()))  # (L,)
        mask = places < lengths  # (B, L)
        tokens = self.tokens[(starts + places).clamp(max=len(self.tokens) - 1)]  # (B, L, W)
        return TextFeatures(
            embedding=self.text_embeddings[caption_ids],
            tokens=tokens.masked_fill(~mask[..., None], 0),
            mask=mask,
            empty=torch.zeros(len(caption_ids), dtype=torch.bool),
        )


def embed_images(
    data: CaptionedImages,
    clip: CLIP,
    clip_sha256: str,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    device: torch.device,
    cache: Path = CACHE,
) -> EmbeddedImages:
    """Captioned images with their embeddings from the cache; computed and stored if they are not there or damaged.

    All ranks must call it: they share the work out. The main one writes, where all of them read.
    """
    # Equal weights are not an equal CLIP: the activation, the pooling, the preprocessing or the tokenizer may differ.
    identity = sha256((clip_sha256 + json.dumps(asdict(clip.config)) + tokenizer.to_json()).encode())
    folder = cache / f"embedded-{identity[:16]}-{data.fingerprint[:16]}"
    with runtime.main_first():
        if runtime.is_main():
            make_folder(cache)
            remove_leftovers(cache)
            if folder.exists() and (why := damage(folder)):
                print0(f"{folder} is damaged ({why}): computing it again")
                shutil.rmtree(folder)
    if runtime.largest(not folder.exists(), device):
        print0(f"embedding {data.name}: {len(data)} images, {len(data.captions)} captions")
        compute(folder, data, clip.to(device), tokenizer, preprocess)
        runtime.barrier()
    # "c": torch wants what can be written to; the file stays as it is
    arrays = {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in ARRAYS}
    return EmbeddedImages(data, **arrays)


def damage(folder: Path) -> str:
    """What is wrong with a cache; nothing if its files are those that were written."""
    try:
        expected = read_record(folder / "sha256.json")
        wrong = [name for name in ARRAYS if file_sha256(folder / f"{name}.npy") != expected[name]]
    except (OSError, UserError, KeyError, TypeError) as error:
        return reason(error)
    return f"{wrong[0]}.npy has changed" if wrong else ""


@torch.inference_mode()
def compute(folder: Path, data: CaptionedImages, clip: CLIP, tokenizer: Tokenizer, preprocess: Preprocess) -> None:
    """Put a data set through a CLIP, on the CLIP's device, into a new folder; of several ranks the main one writes."""
    ids = tokenizer.encode(data.captions, clip.config.text.context)
    lengths = clip.text.mask(ids).sum(dim=1)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(dim=0)])
    pieces = chain(
        [("token_starts", slice(None), starts)],
        encoded_images(data, clip, preprocess),
        encoded_captions(ids, starts, clip),
    )
    shapes = {
        "embeddings": (len(data), clip.config.embed_dim),
        "text_embeddings": (len(ids), clip.config.embed_dim),
        "tokens": (int(starts[-1]), clip.config.text.width),
        "token_starts": (len(starts),),
    }
    if runtime.is_main():
        write(folder, shapes, pieces)
    else:
        for _ in pieces:  # computed with the others
            pass


Piece = tuple[str, slice, Tensor]
"""The name of an array, and some of its rows with what belongs there."""


def encoded_images(data: CaptionedImages, clip: CLIP, preprocess: Preprocess) -> Iterator[Piece]:
    """Of several ranks each encodes a share of every piece, and all have it."""

    def encode(rows: Tensor) -> tuple[Tensor]:
        return (clip.encode_image(preprocess(data.images[rows].to(clip.logit_scale.device))),)

    for rows in _parts(len(data)):
        [embeddings] = runtime.in_shares(encode, rows)
        yield "embeddings", slice(rows[0], rows[-1] + 1), embeddings.cpu()


def encoded_captions(ids: Tensor, starts: Tensor, clip: CLIP) -> Iterator[Piece]:
    """The same for captions, of which no padding is kept."""
    for rows in _parts(len(ids)):
        text, encodings = runtime.in_shares(lambda own: clip.encode_text(ids[own].to(clip.logit_scale.device)), rows)
        yield "text_embeddings", slice(rows[0], rows[-1] + 1), text.cpu()
        yield "tokens", slice(starts[rows[0]], starts[rows[-1] + 1]), encodings.cpu()[clip.text.mask(ids[rows])]


def write(folder: Path, shapes: dict[str, tuple[int, ...]], pieces: Iterable[Piece]) -> None:
    """Write arrays, each in a file of its own, which need not fit in memory: the folder whole, or not at all."""
    temporary = partial_name(folder)
    make_folder(temporary)
    try:
        kinds = {name: np.int64 if name == "token_starts" else np.float32 for name in shapes}
        arrays = {
            name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", kinds[name], shape)
            for name, shape in shapes.items()
        }
        for name, rows, values in pieces:
            arrays[name][rows] = values.numpy()
        for array in arrays.values():
            array.flush()
        write_record(temporary / "sha256.json", {name: file_sha256(temporary / f"{name}.npy") for name in ARRAYS})
        try:
            os.rename(temporary, folder)
            flush_folder(folder.parent)
        except OSError:
            if not folder.exists():  # else another run was first, with the same
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _parts(n: int) -> tuple[Tensor, ...]:
    """Rows 0 .. n - 1, as many at a time as suit all ranks."""
    return torch.arange(n).split(BATCH * runtime.world_size())
