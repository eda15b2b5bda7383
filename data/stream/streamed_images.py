"""A stream as trainings receive it: a sample in memory, and the batches of all its rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from data.dataset import CaptionedImages, build_data_set
from data.problems import Problems
from data.records import Record
from data.source_config import SHAPE_OPTIONS, STREAM_OPTIONS, SourceConfig
from data.sources import DEFAULT_SIZE, name_of_data
from data.splits import FEWEST
from data.stream.loader import RowBatch, StreamLoader, StreamPlan
from data.stream.sample import Sample, Sampler, cached_samples, common_size
from data.stream.shard_list import ShardList, fingerprint, list_shards
from unclip.errors import UserError, quantity

READ_OPTIONS = {"source", "strict", "limit", "image_column", "caption_column", "split", *SHAPE_OPTIONS, *STREAM_OPTIONS}


@dataclass
class StreamedImages(CaptionedImages):
    """The images of a stream's sample, which stand for all of them in statistics and pictures; steps draw from all."""

    plan: StreamPlan | None = None
    sampled_captions: list[str] = field(default_factory=list)
    """The distinct captions of many rows."""

    @property
    def corpus(self) -> list[str]:
        return self.sampled_captions

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the list of shards and of the options."""
        return self.plan.fingerprint

    def open(self, seed: int, size: int, rank: int, ranks: int) -> StreamLoader:
        """A loader of `size` rows at a time for a rank."""
        return StreamLoader(self.plan, seed, size, rank, ranks)

    def step_images(self, batch: RowBatch) -> CaptionedImages:
        """The rows of a step as a data set of their own. Their pairs weigh as they do beside the sample's."""
        records = [Record(row.name, _closed, row.captions) for row in batch.rows]
        images = build_data_set(self.name, batch.images, records)
        images.pair_weights = images.captioner.counts / self.captioner.counts.float().mean()
        return images


def open_stream(config: SourceConfig, splits: Sequence[str]) -> list[CaptionedImages]:
    """The splits of a streamed source: that of training as `StreamedImages`, the others from its sample.

    Raises UserError if there is no such source, if a shard is missing, and if too little of it can be used.
    """
    for item in fields(SourceConfig):
        if item.name not in READ_OPTIONS and getattr(config, item.name) != item.default:
            raise UserError(f"--data.{item.name.replace('_', '-')} has no meaning for a stream; leave it out")
    problems = Problems(config.source)
    shards = list_shards(config, problems)
    size = config.size or common_size(shards.train, config.columns, config.fit, DEFAULT_SIZE)
    config = replace(config, size=size)  # so that it is the same data whether or not the size is given
    identity = _identity(config, shards)
    samples = cached_samples(identity, lambda: _sample(config, shards, problems), problems)
    problems.report(config.strict)
    if shards.held_out:  # a source with one of the two uses it for both
        for split, other in (("validation", "test"), ("test", "validation")):
            samples[split] = samples[split if split in shards.held_out else other]
    name = name_of_data(config.source)
    return [_data_set(f"{name}/{split}", split, samples[split], config, shards, identity) for split in splits]


def _identity(config: SourceConfig, shards: ShardList) -> str:
    options = {name: getattr(config, name) for name in sorted(READ_OPTIONS - {"source", "strict", "workers", "embed"})}
    every = shards.train + [shard for split in sorted(shards.held_out) for shard in shards.held_out[split]]
    return fingerprint(every, json.loads(json.dumps(options)))


def _sample(config: SourceConfig, shards: ShardList, problems: Problems) -> dict[str, Sample]:
    size = config.size or DEFAULT_SIZE
    sampler = Sampler(size, 1 if config.grey else 3, config.fit, config.sample, config.limit or config.sample)
    return sampler.take(shards, config.columns, problems)


def _data_set(
    name: str, split: str, sample: Sample, config: SourceConfig, shards: ShardList, identity: str
) -> CaptionedImages:
    """A split as a data set. Raises UserError if it has too few images."""
    if len(sample.images) < FEWEST:
        raise UserError(
            f"{config.source} cannot be trained on: {quantity(len(sample.images), 'usable image')} for {split} in "
            f"{quantity(len(shards.train), 'shard')}, but {FEWEST} are needed"
        )
    records = [Record("", _closed, captions) for captions in sample.captions]
    images = build_data_set(name, sample.images, records)
    if split != "train":
        return images
    plan = StreamPlan(
        shards=shards.train,
        split=None if shards.held_out else "train",
        columns=config.columns,
        size=images.image_size,
        channels=images.channels,
        fit=config.fit,
        buffer=config.buffer,
        workers=config.workers,
        fingerprint=identity,
    )
    return StreamedImages(name, images.images, images.captioner, plan=plan, sampled_captions=sample.corpus)


def _closed() -> Any:
    raise AssertionError("its image is decoded already")
