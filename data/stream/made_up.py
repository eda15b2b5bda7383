"""Made-up shards, to measure reading and to rehearse trainings: shapes with the grain of photographs, as JPEG files."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from data.problems import Problems
from data.shapes import read_shapes
from data.source_config import SourceConfig

DISTINCT = 240
"""Images that differ; more rows repeat them."""
GRAIN = 10
"""Deviation of the noise, by which a JPEG takes as many bytes as that of a photograph."""


def write_shards(folder: Path, size: int, shards: int, rows: int) -> Path:
    """Write .tar shards of so many captioned rows each, of images of `size` x `size` pixels, into a new folder."""
    folder.mkdir(parents=True)
    records = read_shapes(SourceConfig("shapes"), Problems("shapes")).records
    count = min(DISTINCT, shards * rows)
    chosen = records[:: len(records) // count][:count]
    pairs = [(_jpeg(record.open(), size, seed), record.captions[0]) for seed, record in enumerate(chosen)]
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as file:
            for number in range(shard * rows, (shard + 1) * rows):
                image, caption = pairs[number % count]
                for suffix, content in (("jpg", image), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return folder


def _jpeg(image: Image.Image, size: int, seed: int) -> bytes:
    """The file of an image with grain, in a quality that is usual for shards."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = np.random.default_rng(seed).normal(0, GRAIN, (size, size, 1))
    content = io.BytesIO()
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=95)
    return content.getvalue()
