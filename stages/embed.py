"""A data set as the frozen CLIP sees it: computed once and cached, so that no training step runs CLIP.

The cache of a data set is a folder of arrays, named after hashes of the CLIP and of the data: the image embeddings, and
for every caption its text embedding and the features of its tokens, end to end. Arrays are mapped into memory, so that
only the rows that batches ask for are read.
"""

import json
import shutil
from collections.abc import Iterator
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
from unclip.errors import UserError, quantity
from unclip.store.array_files import array_cache_damage, map_array_cache, new_array_cache
from unclip.store.checksums import sha256
from unclip.store.files import make_folder, remove_leftovers

BATCH = 256
"""Images or captions that a rank encodes at once."""
ROWS_CHECKED = 65_536
"""Rows of a cache that are checked at once."""
LEAST_DIFFERENCE = 1e-5
"""Embeddings, of unit length, that differ by less in every coordinate are the same but for rounding."""


@dataclass
class EmbeddedImages:
    """Captioned images with their embeddings and those of their captions. All tensors are on the CPU."""

    data: CaptionedImages
    embeddings: Tensor
    """Unit image embeddings (N, D)."""
    text_embeddings: Tensor
    """Unit text embeddings (M, D), one per caption of the data set."""
    tokens: Tensor
    """Token features of all captions, end to end, (tokens, W)."""
    token_starts: Tensor
    """(M + 1,), the first row in `tokens` of each caption, and the end of the last."""

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
    """Embed captioned images, or read their embeddings from the cache if they are there and intact.

    All ranks must call this: they share the work. The main one writes the cache, which all of them read.
    """
    folder = cache / f"embedded-{clip_identity(clip, clip_sha256, tokenizer)[:16]}-{data.fingerprint[:16]}"
    with runtime.main_first():
        if runtime.is_main():
            make_folder(cache)
            remove_leftovers(cache)
            if folder.exists() and (damage := array_cache_damage(folder)):
                print0(f"{folder} is damaged ({damage}): computing it again")
                shutil.rmtree(folder)
    if runtime.largest(not folder.exists(), device):
        print0(f"embedding {data.name}: {quantity(len(data), 'image')}, {quantity(len(data.captions), 'caption')}")
        compute_embeddings(folder, data, clip.to(device), tokenizer, preprocess)
        runtime.barrier()
    arrays = map_array_cache(folder).arrays
    embedded = EmbeddedImages(data, **{name: torch.from_numpy(array) for name, array in arrays.items()})
    for name in ("embeddings", "text_embeddings", "tokens"):
        check_embeddings(getattr(embedded, name), f"the {name.replace('_', ' ')} of {data.name} in {folder}")
    return embedded


def clip_identity(clip: CLIP, clip_sha256: str, tokenizer: Tokenizer) -> str:
    """SHA-256 of all by which embeddings can differ.

    Two CLIPs of equal weights may still differ in activation, pooling, preprocessing or tokenizer.
    """
    return sha256((clip_sha256 + json.dumps(asdict(clip.config)) + tokenizer.to_json()).encode())


@torch.no_grad()  # not inference_mode: the steps of a training take these as they are
def embed_step(data: CaptionedImages, clip: CLIP, tokenizer: Tokenizer, preprocess: Preprocess) -> EmbeddedImages:
    """Embed the few images of a step and all their captions, on the CLIP's device, without a cache."""
    device = clip.logit_scale.device
    token_ids = tokenizer.encode(data.captions, clip.config.text.context)
    mask = clip.text.mask(token_ids)
    text_embeddings, tokens = clip.encode_text(token_ids.to(device))
    return EmbeddedImages(
        data=data,
        embeddings=clip.encode_image(preprocess(data.images.to(device))).cpu(),
        text_embeddings=text_embeddings.cpu(),
        tokens=tokens.cpu()[mask],
        token_starts=_starts(mask),
    )


def _starts(mask: Tensor) -> Tensor:
    """Where the tokens of each caption begin (M + 1,), end to end, by the mask (M, L) of all."""
    return torch.cat([torch.zeros(1, dtype=torch.long), mask.sum(dim=1).cumsum(dim=0)])


def check_embeddings(values: Tensor, name: str) -> None:
    """Raise UserError for embeddings (N, D) from which nothing can be trained: not finite, or all equal."""
    advice = "the CLIP that computed them cannot be trained on: train it anew in another --out"
    parts = values.split(ROWS_CHECKED)
    if not all(part.isfinite().all() for part in parts):
        raise UserError(f"{name} are not all finite; {advice}, and delete that folder")
    if len(values) > 1 and all((part - values[0]).abs().max() < LEAST_DIFFERENCE for part in parts):
        raise UserError(f"{name} are all the same, so nothing can be told apart by them; {advice}")


@torch.inference_mode()
def compute_embeddings(
    folder: Path, data: CaptionedImages, clip: CLIP, tokenizer: Tokenizer, preprocess: Preprocess
) -> None:
    """Embed a data set on the CLIP's device into a new cache, which the main rank writes."""
    token_ids = tokenizer.encode(data.captions, clip.config.text.context)
    starts = _starts(clip.text.mask(token_ids))
    pieces = chain(
        [("token_starts", slice(None), starts)],
        encoded_images(data, clip, preprocess),
        encoded_captions(token_ids, starts, clip),
    )
    layout = {
        "embeddings": (np.float32, (len(data), clip.config.embed_dim)),
        "text_embeddings": (np.float32, (len(token_ids), clip.config.embed_dim)),
        "tokens": (np.float32, (int(starts[-1]), clip.config.text.width)),
        "token_starts": (np.int64, (len(starts),)),
    }
    if runtime.is_main():
        with new_array_cache(folder, layout) as cache:
            for name, rows, values in pieces:
                cache.arrays[name][rows] = values.numpy()
    else:
        for _ in pieces:  # the other ranks compute their share of each piece
            pass


Piece = tuple[str, slice, Tensor]
"""The name of an array, a range of its rows, and their values."""


def encoded_images(data: CaptionedImages, clip: CLIP, preprocess: Preprocess) -> Iterator[Piece]:
    """Pieces of the image embeddings. Each rank encodes a share of every piece, and gets the whole of it."""

    def encode(rows: Tensor) -> tuple[Tensor]:
        return (clip.encode_image(preprocess(data.images[rows].to(clip.logit_scale.device))),)

    for rows in _row_batches(len(data)):
        [embeddings] = runtime.in_shares(encode, rows)
        yield "embeddings", slice(rows[0], rows[-1] + 1), embeddings.cpu()


def encoded_captions(token_ids: Tensor, starts: Tensor, clip: CLIP) -> Iterator[Piece]:
    """Pieces of the text embeddings and of the token features, without padding; shared by the ranks as above."""

    def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
        return clip.encode_text(token_ids[rows].to(clip.logit_scale.device))

    for rows in _row_batches(len(token_ids)):
        text_embeddings, tokens = runtime.in_shares(encode, rows)
        yield "text_embeddings", slice(rows[0], rows[-1] + 1), text_embeddings.cpu()
        yield "tokens", slice(starts[rows[0]], starts[rows[-1] + 1]), tokens.cpu()[clip.text.mask(token_ids[rows])]


def _row_batches(n: int) -> tuple[Tensor, ...]:
    """The rows 0 .. n - 1, a batch for every rank at a time."""
    return torch.arange(n).split(BATCH * runtime.world_size())


if __name__ == "__main__":
    from stages.embed_shards import main
    from unclip.cli.run import run

    run(main)
