"""Trainings from streams: of any kind of shard, broken off and gone on with, on ranks, with stored embeddings."""

import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from faults import forked
from ranks import on_ranks
from runs import CPU, assert_same_run, break_off, metrics
from shards_of_rows import rows_of, stream_of, write_shards, write_tar
from three_stages import CLIP_MODEL, build_stage

from data.dataset import CaptionedImages, build_data_set
from data.records import Record
from data.shuffling import batch_generator
from stages import loop
from stages.batches import StepDraw
from stages.clip import CLIPRun, CLIPStage
from stages.data_config import DataConfig
from stages.embed import EmbeddedImages, embed_images
from stages.inputs import CLIPInputs, open_inputs
from stages.prior import PriorRun
from stages.stored_embeddings import StoredEmbeddings
from stages.streaming import StepStream
from unclip.clip import Tokenizer, load_clip
from unclip.errors import UserError
from unclip.registry import find_kind, resolve
from unclip.store.manifest import Manifest, read_manifest

pytestmark = pytest.mark.usefixtures("own_caches")
SETTINGS = loop.TrainConfig(
    steps=8, batch_size=6, lr=1e-3, warmup=2, evaluate_every=4, save_every=2, log_every=2, device="cpu",
    precision="float32",
)  # fmt: skip


def clip_stage(train) -> CLIPStage:
    tokenizer = Tokenizer.train(train.corpus, 300)
    return build_stage(CLIPStage, CLIPRun(model=CLIP_MODEL), CLIPInputs(train, train.first(20), tokenizer, {}))


def train_clip(train, out, stage=None) -> None:
    stage = stage or clip_stage(train)
    loop.train(stage, SETTINGS, CPU, out, Manifest("clip"), stream=StepStream(train))


def test_tar_and_parquet_and_a_run_that_was_broken_off_give_the_same_training(tmp_path, capsys):
    tar, parquet = (stream_of(write_shards(tmp_path / kind, kind)) for kind in ("tar", "parquet"))
    train_clip(tar, tmp_path / "whole")
    train_clip(parquet, tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        train_clip(tar, tmp_path / "broken", break_off(clip_stage(tar), "batch", 6))  # the state is of step 4
    train_clip(tar, tmp_path / "broken")
    assert "going on from step 4" in capsys.readouterr().err
    for other in ("other", "broken"):
        assert_same_run(tmp_path / "whole", tmp_path / other, "clip")
    assert len({line["loss"] for line in metrics(tmp_path / "whole", "clip") if "loss" in line}) > 1


class Replayed(StepStream):
    """Steps on data sets in memory, one for each, in place of a stream's."""

    def __init__(self, train, data_sets):
        super().__init__(train)
        self.data_sets = data_sets

    def batches(self, stage, config, first, device, states):
        for step, data_set in enumerate(self.data_sets):
            generator = batch_generator(config.seed, step)
            rows = torch.arange(config.batch_size)
            yield stage.batch(StepDraw(rows, generator, config.seed, step, streamed=data_set))


def test_ranks_on_a_stream_train_as_one_process_on_the_same_rows_in_memory(tmp_path):
    """The losses of all steps, in float64."""
    train = stream_of(write_shards(tmp_path / "x"))
    settings = replace(SETTINGS, steps=4)

    def losses_on(stream, out):
        stage = clip_stage(train)
        stage.model.double()
        losses = []
        stage.objective.register_forward_hook(lambda _, __, loss: losses.append(loss.item()))
        loop.train(stage, settings, CPU, out, Manifest("clip"), stream=stream)
        return losses[: settings.steps]

    def on_rank():
        stream = StepStream(train)
        seen = []
        stream.embed = lambda images, rows: (seen.append((images.images.numpy(), rows)), images)[1]
        return losses_on(stream, tmp_path / "two"), seen

    (one, seen), (other, more) = on_ranks(2, on_rank)
    data_sets = []
    for (images, rows), (more_images, more_rows) in zip(seen[:4], more[:4], strict=True):
        pixels = torch.stack([torch.from_numpy(images), torch.from_numpy(more_images)], dim=1).flatten(0, 1)
        every = [row for pair in zip(rows, more_rows, strict=True) for row in pair]
        assert len({row.name for row in every}) == 6
        data_sets.append(build_data_set("both", pixels, [Record(row.name, None, row.captions) for row in every]))
    alone = losses_on(Replayed(train, data_sets), tmp_path / "one")
    assert [sum(pair) / 2 for pair in zip(one, other, strict=True)] == pytest.approx(alone, abs=1e-6)
    assert len(set(alone)) == 4


def test_signal_that_reaches_the_readers_too_finishes_the_step_and_saves_it(tmp_path):
    """As a terminal sends Ctrl-C, and torchrun SIGTERM, to all processes of a group."""
    train = stream_of(write_shards(tmp_path / "x"), workers=1)
    stage = clip_stage(train)
    draw = stage.batch
    stage.batch = lambda step: (time.sleep(0.2), draw(step))[1]

    def work() -> None:
        os.setpgrp()
        train_clip(train, tmp_path / "run", stage)

    child = forked(work, tmp_path / "log")
    child.said("clip 2/8")
    os.killpg(child.process, signal.SIGINT)
    status, said = child.wait()
    assert (status, "stopped by SIGINT after step" in said) == (130, True), said


@pytest.fixture
def streamed_pipeline(script, tmp_path):
    """A pipeline whose CLIP was trained for a few steps on a stream."""
    finished = script("train_clip", *streamed_training(tmp_path))
    assert finished.code == 0, finished.err
    assert "a stream of 4 shards" in finished.err
    return tmp_path / "run"


def streamed_training(folder: Path) -> tuple:
    """Options of a CLIP's training on a stream."""
    source = folder / "x"
    if not source.exists():
        write_shards(source, rows=100)
    small = ("--data.workers", 0, "--train.batch-size", 8, "--train.steps", 2, "--vocab-size", 300)
    return ("--preset", "tiny", "--data", source, "--data.stream", "--out", folder / "run", *small)


def test_the_command_that_began_a_training_is_taken_again(streamed_pipeline, script, tmp_path):
    """A flag that the pipeline records is given once more."""
    finished = script("train_clip", *streamed_training(tmp_path))
    assert finished.code == 0, finished.err
    assert "is trained already" in finished.err


def test_all_parts_train_from_a_stream_by_their_scripts(streamed_pipeline, script):
    options = ("--preset", "tiny", "--out", streamed_pipeline, "--train.steps", 2, "--train.batch-size", 8)
    options = (*options, "--data.workers", 0)
    refused = script("train_prior", *options)
    assert refused.code == 1
    assert "python -m stages.embed" in refused.err
    finished = script("train_prior", *options, "--data.embed", "online")
    assert finished.code == 0, finished.err
    assert "no longer" not in finished.out
    assert "4 of 4 shards" in script("stages.embed_shards", "--out", streamed_pipeline).err
    assert "0 of 4 shards" in script("stages.embed_shards", "--out", streamed_pipeline).err
    finished = script("train_decoder", *options)
    assert finished.code == 0, finished.err
    assert read_manifest(streamed_pipeline / "decoder").complete


def cached(images, rows, clip):
    """The embeddings of the rows of a step as a source without a stream has them."""
    model, tokenizer, preprocess = clip
    return embed_images(images, model, "c" * 64, tokenizer, preprocess, CPU)


def test_embeddings_beside_a_stream_give_the_losses_of_the_cache(streamed_pipeline, script):
    assert script("stages.embed_shards", "--out", streamed_pipeline).code == 0
    source = read_manifest(streamed_pipeline / "clip").provenance
    losses = {}
    for embed in ("stored", "online", "cache"):
        chosen = "online" if embed == "online" else "stored"
        data = DataConfig(source["source"], size=source["size"], stream=True, workers=0, embed=chosen)
        inputs = open_inputs(PriorRun(streamed_pipeline, data=data), CPU)
        if embed == "cache":
            inputs.stream.embed = partial(cached, clip=load_clip(streamed_pipeline))
        for part in ("prior", "decoder"):
            row = find_kind(part, "diffusion")
            run = replace(resolve(row.presets)["tiny"], train=SETTINGS)
            stage = build_stage(resolve(row.stage), run, inputs)
            batches = inputs.stream.batches(stage, SETTINGS, 0, CPU, [])
            losses[embed, part] = [stage.objective(next(batches)).item() for _ in range(2)]
            batches.close()
    for part in ("prior", "decoder"):
        for embed in ("stored", "online"):
            assert losses[embed, part] == pytest.approx(losses["cache", part], abs=1e-5)


def random_embeddings(images: CaptionedImages) -> EmbeddedImages:
    """Two tokens for each caption."""
    count = len(images.captions)
    return EmbeddedImages(
        images, torch.rand(len(images), 4), torch.rand(count, 4), torch.rand(2 * count, 3), 2 * torch.arange(count + 1)
    )


def test_stored_embeddings_that_are_missing_damaged_or_of_another_shard_are_refused(tmp_path):
    train = stream_of(write_shards(tmp_path / "x"))
    stored = StoredEmbeddings(train.plan, "c" * 64)
    with pytest.raises(UserError, match="4 shards of 4 have no embeddings"):
        stored.check_complete()
    for shard in train.plan.shards:
        stored.write(shard, random_embeddings)
    batch = next(train.open(0, 8, 0, 1))
    images = train.step_images(batch)
    stored(images, batch.rows)
    stored.opened.clear()
    folder = stored.path(stored.shards[batch.rows[0].shard])
    array = folder / "embeddings.npy"
    array.write_bytes(array.read_bytes()[:-4] + bytes(4))
    with pytest.raises(UserError, match=r"is damaged \(embeddings.npy has changed\)"):
        stored(images, batch.rows)
    shutil.rmtree(folder)
    stored.write(stored.shards[batch.rows[0].shard], random_embeddings)
    write_tar(Path(stored.shards[batch.rows[0].shard].address), rows_of(9, 60))
    with pytest.raises(UserError, match=r"is of an earlier .*\.tar"):
        stored(images, batch.rows)
