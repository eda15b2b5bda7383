"""The beginning of a stream, held in memory: captions for the tokenizer, and images of each split."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from data import paths
from data.problems import Problems
from data.records import Columns
from data.shuffling import permutation
from data.splits import SPLITS, split_of_key
from data.stream.loader import decode_row
from data.stream.rows import Row, read_rows
from data.stream.shard_list import Shard, ShardList
from unclip.fitting import Fit
from unclip.image_opening import open_image
from unclip.store.array_files import array_cache_damage, map_array_cache, new_array_cache
from unclip.store.files import make_folder, remove_leftovers

IMAGES = 2048
"""Images of each split that are held: for statistics of the embeddings, for validation, and for pictures."""
MEMORY = 2**28
"""Bytes that those of a split may take."""
LOOKED_AT = 64
"""Images by which the size is chosen."""


@dataclass
class Sample:
    """Images with their captions, of one split."""

    images: Tensor
    """uint8 (n, C, H, W)."""
    captions: list[tuple[str, ...]]
    """The captions of each image."""
    corpus: list[str] = field(default_factory=list)
    """The distinct captions of these rows and of more, whose images are not held."""


def common_size(shards: Sequence[Shard], columns: Columns, fit: Fit, largest: int) -> int:
    """Pixels per side of the first images, if all have one size of at most `largest`; else that."""
    sizes = set()
    looked_at = 0
    for shard in shards:
        for example in read_rows([shard], columns):
            try:
                with open_image(io.BytesIO(example["row"].image or b"")) as image:
                    sizes.add(image.size)
            except Exception:  # reported where it is decoded
                continue
            looked_at += 1
            if len(sizes) > 1 or max(map(max, sizes)) > largest:
                return largest
            if looked_at == LOOKED_AT:
                break
        if looked_at == LOOKED_AT:
            break
    [size] = sizes or [(largest, largest)]
    return min(size) if fit == "crop" else max(size)


class Sampler:
    """Take from the beginning of a stream as many rows as are wanted of each split."""

    def __init__(self, size: int, channels: int, fit: Fit, rows: int, images: int):
        """Want so many captions for the corpus, and so many images of each split."""
        self.shape = (channels, size, size)
        self.fit: Fit = fit
        self.rows = rows
        self.most = min(images, IMAGES, max(1, MEMORY // int(np.prod(self.shape))))
        self.images: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self.captions: dict[str, list[tuple[str, ...]]] = {split: [] for split in SPLITS}
        self.corpus: dict[str, None] = {}
        self.read = 0

    def take(self, shards: ShardList, columns: Columns, problems: Problems) -> dict[str, Sample]:
        """The samples of the splits; rows that cannot be used are added to `problems`."""
        if shards.held_out:
            for split, of_split in {"train": shards.train, **shards.held_out}.items():
                self._read(of_split, columns, lambda _, split=split: split, (split,), problems)
        else:
            self._read(shards.train, columns, split_of_key, SPLITS, problems)
        samples = {}
        for split in SPLITS:
            images = np.stack(self.images[split]) if self.images[split] else np.empty((0, *self.shape), np.uint8)
            samples[split] = Sample(torch.from_numpy(images), self.captions[split])
        samples["train"].corpus = list(self.corpus)
        return samples

    def _read(
        self,
        shards: Sequence[Shard],
        columns: Columns,
        split_of: Callable[[str], str],
        splits: Sequence[str],
        problems: Problems,
    ) -> None:
        """Read shards, in an order that is always the same, until these splits have enough."""
        for index in permutation(len(shards), 0, 0).tolist():
            for example in read_rows([shards[index]], columns):
                row = example["row"]
                split = split_of(row.name)
                for name, why in row.problems:
                    problems.add(name, why)
                if row.image is None:
                    continue
                if split == "train" and self.read < self.rows:
                    self.corpus.update(dict.fromkeys(row.captions))
                    self.read += 1
                if len(self.images[split]) < self.most:
                    self._hold(split, row, problems)
                if all(map(self._is_full, splits)):
                    return

    def _is_full(self, split: str) -> bool:
        return len(self.images[split]) == self.most and (split != "train" or self.read >= self.rows)

    def _hold(self, split: str, row: Row, problems: Problems) -> None:
        channels, size, _ = self.shape
        pixels = decode_row(row, size, channels, self.fit)
        if isinstance(pixels, str):
            problems.add(row.name, pixels)
        else:
            self.images[split].append(pixels)
            self.captions[split].append(row.captions)


def cached_samples(name: str, sample: Callable[[], dict[str, Sample]], problems: Problems) -> dict[str, Sample]:
    """The samples that `sample()` returns, from the cache if they are there; `name` tells all that they depend on."""
    folder = paths.CACHE / f"stream-{name[:16]}"
    make_folder(paths.CACHE)
    remove_leftovers(paths.CACHE)
    if not folder.exists() or array_cache_damage(folder):
        samples = sample()
        texts = {split: json.dumps([s.captions, s.corpus]).encode() for split, s in samples.items()}
        layout = {split: (np.uint8, tuple(s.images.shape)) for split, s in samples.items()}
        layout |= {f"{split}-captions": (np.uint8, (len(text),)) for split, text in texts.items()}
        with new_array_cache(folder, layout) as cache:
            for split, s in samples.items():
                cache.arrays[split][:] = s.images.numpy()
                cache.arrays[f"{split}-captions"][:] = np.frombuffer(texts[split], np.uint8)
            cache.notes["problems"] = list(problems.rows)
    arrays, notes = map_array_cache(folder)
    for row, why in notes["problems"]:
        problems.add(row, why)
    samples = {}
    for split in SPLITS:
        captions, corpus = json.loads(arrays[f"{split}-captions"].tobytes())
        samples[split] = Sample(torch.from_numpy(arrays[split]), [tuple(texts) for texts in captions], corpus)
    return samples
