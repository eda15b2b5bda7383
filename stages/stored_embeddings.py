"""Embeddings of a stream, written once: for each shard a cache beside it, which is read in step with its rows."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import paths
from data.dataset import CaptionedImages, build_data_set
from data.records import Record
from data.stream.fetching import is_remote
from data.stream.loader import StreamPlan, decode_row
from data.stream.rows import Row, read_rows
from data.stream.shard_list import Shard, fingerprint
from stages.embed import BATCH, EmbeddedImages
from unclip.errors import UserError, quantity
from unclip.store.array_files import array_cache_damage, map_array_cache, new_array_cache
from unclip.store.checksums import sha256
from unclip.store.files import make_folder, remove_leftovers

OPEN = 64
"""Shards whose embeddings are mapped into memory at once."""


class StoredEmbeddings:
    """The embeddings of a stream's rows, as a frozen CLIP sees them: a folder with a cache of arrays for each shard.

    The arrays of a shard are those of `EmbeddedImages` and, for each image, its number in the shard (`rows`) and its
    caption ids, end to end (`caption_ids`, `caption_starts`).
    """

    def __init__(self, plan: StreamPlan, clip_identity: str):
        self.plan = plan
        self.shards = {shard.name: shard for shard in plan.shards}
        self.opened: dict[str, dict[str, np.ndarray]] = {}
        reading = [plan.split, list(plan.columns), plan.size, plan.channels, plan.fit]
        identity = sha256(f"{clip_identity} {json.dumps(reading)}".encode())[:16]
        address = plan.shards[0].address
        self.folder = (paths.CACHE if is_remote(address) else Path(address).parent) / f"embeddings-{identity}"

    @property
    def advice(self) -> str:
        command = f"python -m stages.embed --out PIPELINE --data.size {self.plan.size}"
        return f"embed the stream with: {command}, or train with --data.embed online"

    def path(self, shard: Shard) -> Path:
        return self.folder / shard.name.replace("/", "--")

    def missing(self) -> list[Shard]:
        """The shards that are not embedded yet."""
        return [shard for shard in self.plan.shards if not self.path(shard).exists()]

    def check_complete(self) -> None:
        """Raise UserError if shards are not embedded."""
        if missing := self.missing():
            count = quantity(len(missing), "shard")
            raise UserError(f"{count} of {len(self.plan.shards)} have no embeddings in {self.folder}; {self.advice}")

    def write(self, shard: Shard, embed: Callable[[CaptionedImages], EmbeddedImages]) -> int:
        """Embed the rows of a shard, and write them, whole or not at all. Returns how many could be used."""
        make_folder(self.folder)
        remove_leftovers(self.folder)
        columns: dict[str, list[Tensor]] = {}
        for rows, images in self._read_images(shard):
            embedded = embed(images)
            captions = images.captioner
            ids = [captions.table[i, :count] for i, count in enumerate(captions.counts.tolist())]
            known = sum(map(len, columns.get("text_embeddings", ())))
            for name, values in {
                "rows": torch.tensor([row.index for row in rows]),
                "embeddings": embedded.embeddings,
                "caption_ids": torch.cat(ids) + known,
                "caption_counts": captions.counts,
                "text_embeddings": embedded.text_embeddings,
                "tokens": embedded.tokens,
                "token_counts": embedded.token_starts.diff(),
            }.items():
                columns.setdefault(name, []).append(values)
        arrays = {name: torch.cat(values).numpy() for name, values in columns.items()}
        for name in ("caption", "token"):
            counts = arrays.pop(f"{name}_counts", np.zeros(0, np.int64))
            arrays[f"{name}_starts"] = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
        arrays.setdefault("rows", np.zeros(0, np.int64))  # of a shard without a row that can be used, the one array
        with new_array_cache(self.path(shard), {n: (a.dtype.type, a.shape) for n, a in arrays.items()}) as cache:
            for name, array in arrays.items():
                cache.arrays[name][:] = array
            cache.notes["shard"] = fingerprint([shard], {})
        return len(arrays["rows"])

    def __call__(self, images: CaptionedImages, rows: list[Row]) -> EmbeddedImages:
        """The images of a step, which are these rows, with their embeddings. Raises UserError for missing ones."""
        embeddings = []
        texts: dict[str, Tensor] = {}
        tokens = []
        for row in rows:
            arrays = self._open(row.shard)
            place = int(np.searchsorted(arrays["rows"], row.index))
            if place == len(arrays["rows"]) or arrays["rows"][place] != row.index:
                raise UserError(
                    f"{self.path(self.shards[row.shard])} lacks {row.name}; delete that folder, and {self.advice}"
                )
            embeddings.append(torch.from_numpy(arrays["embeddings"][place]))
            ids = arrays["caption_ids"][slice(*arrays["caption_starts"][place : place + 2])]
            for caption, i in zip(row.captions, ids, strict=True):
                if caption not in texts:
                    texts[caption] = torch.from_numpy(arrays["text_embeddings"][i])
                    tokens.append(torch.from_numpy(arrays["tokens"][slice(*arrays["token_starts"][i : i + 2])]))
        lengths = torch.tensor([0, *map(len, tokens)])
        return EmbeddedImages(
            images, torch.stack(embeddings), torch.stack(list(texts.values())), torch.cat(tokens), lengths.cumsum(dim=0)
        )

    def _open(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a shard. Raises UserError if they are damaged, or those of another shard of that name."""
        if name not in self.opened:
            shard = self.shards[name]
            folder = self.path(shard)
            if damage := array_cache_damage(folder):
                raise UserError(f"{folder} is damaged ({damage}); delete that folder, and {self.advice}")
            arrays, notes = map_array_cache(folder)
            if notes.get("shard") != fingerprint([shard], {}):
                raise UserError(f"{folder} is of an earlier {shard.address}; delete that folder, and {self.advice}")
            if len(self.opened) == OPEN:
                self.opened.clear()
            self.opened[name] = arrays
        return self.opened[name]

    def _read_images(self, shard: Shard) -> Iterator[tuple[list[Row], CaptionedImages]]:
        """The rows of a shard that can be used, some at a time, and their images."""
        plan = self.plan
        examples = read_rows([shard], plan.columns, plan.split)
        while some := list(islice(examples, BATCH)):
            decoded = [
                (example["row"], pixels)
                for example in some
                if example["row"].image is not None
                and not isinstance(pixels := decode_row(example["row"], plan.size, plan.channels, plan.fit), str)
            ]
            if decoded:
                rows = [row for row, _ in decoded]
                pixels = torch.from_numpy(np.stack([image for _, image in decoded]))
                records = [Record(row.name, None, row.captions) for row in rows]
                yield rows, build_data_set(shard.name, pixels, records)
