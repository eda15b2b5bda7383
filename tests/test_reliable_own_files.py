"""Files of one's own: no training and no publishing replaces or removes a file that we did not write."""

import os
import random
import shutil
import time
from pathlib import Path

import pytest
import small_pipeline
import torch
import toy
from conftest import contents, files_under
from faults import refused

from stages import loop
from stages.train import train_part
from unclip.cli.options import parse_run
from unclip.errors import UserError
from unclip.store import files, hub
from unclip.store.checksums import file_sha256
from unclip.store.files import partial_name, remove_leftovers
from unclip.store.index import check_files, read_index, write_index
from unclip.store.lock import only_writer
from unclip.store.manifest import read_manifests
from unclip.store.parts import finish_saving
from unclip.store.publish import publish
from unclip.store.tensors import dump_tensors

MANY = os.environ.get("TORTURE") == "1"
"""Whether to run the full counts."""

PLACES = (
    "README.md", "captions.txt", "model_index.json", "notes.txt", ".notes.txt.partial", "examples/mine.png", "line",
    "line/README.md", "line/config.json", "line/model.safetensors", "line/model-00001-of-00002.safetensors",
    "line/model-0123456789abcdef.safetensors", "line/model-best.safetensors", "line/train", "line/train/lock",
    "line/train/metrics.jsonl", "line/train/curves.png", "line/train/preview-000006.png", "line/train/run.json",
    "line/train/state.safetensors", "line/train/state-before.safetensors", "line/train/.a.host.1.1.partial",
)  # fmt: skip
CONTENTS = (b"mine\n", b"", b"{}", b'{"format": 4}', b"[]", b"\xff\xfe", dump_tensors({"x": torch.zeros(3)}))


def train(folder: Path, captions: str = "a\nb\n") -> None:
    manifest = toy.manifest()
    loop.train(toy.LineStage(), toy.SETTINGS, torch.device("cpu"), folder, manifest, {"captions.txt": captions})


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_files_of_ones_own_outlive_a_training(tmp_path):
    """Each place with each content: the training leaves the file as it is, or is refused and leaves nothing else."""
    trials = [(place, content) for place in PLACES for content in CONTENTS]
    chance = random.Random(0)
    some = [(place, chance.choice(CONTENTS)) for place in PLACES]
    ends = {"trained": 0, "refused": 0}
    for i, (place, content) in enumerate(trials if MANY else some):
        folder = tmp_path / str(i)
        put(folder / place, content)
        said = refused(lambda folder=folder: train(folder))
        assert (folder / place).read_bytes() == content, (place, content, said)
        if said:
            assert str(folder) in said, (place, said)
            if "state" not in place:  # which is read when all else is ready
                assert set(files_under(folder)) <= {place, "line/train/lock"}, (place, content)
        ends["refused" if said else "trained"] += 1
    assert min(ends.values()) > 1


@pytest.mark.parametrize("place", ["README.md", "captions.txt", "tokenizer.json", "samples.png", "model_index.json",
                                   "examples/a.png", "prior/notes.txt"])  # fmt: skip
def test_publishing_is_refused_where_a_file_is_in_the_way(place, tmp_path):
    put(tmp_path / "out" / place, b"mine")
    with pytest.raises(UserError, match=rf"out holds a {place.split('/')[0]} already; choose another folder"):
        publish(small_pipeline.build(tmp_path / "own"), tmp_path / "out", "out")
    assert contents(tmp_path / "out") == {place: b"mine"}


def test_publishing_beside_other_files_leaves_them_and_uploads_none(tmp_path, monkeypatch):
    put(tmp_path / "out" / "diary.txt", b"mine")
    names = publish(small_pipeline.build(tmp_path / "own"), tmp_path / "out", "out")
    assert (tmp_path / "out" / "diary.txt").read_bytes() == b"mine"
    assert sorted([*names, "diary.txt"]) == files_under(tmp_path / "out")
    uploaded = {}
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: "url")
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda *_, **named: uploaded.update(named))
    hub.upload(tmp_path / "out", "me/mine", names)
    assert sorted(uploaded["allow_patterns"]) == sorted(names)


def test_program_refuses_files_in_the_way_before_it_reads_data(tmp_path, monkeypatch):
    from configs import clip, decoder

    monkeypatch.setattr("stages.data_config.load_splits", lambda *_, **__: 1 / 0)
    for part, presets, name in (("clip", clip, "tokenizer.json"), ("decoder", decoder, "captions.txt")):
        out = tmp_path / part
        put(out / name, b"mine")
        run = parse_run(presets.PRESETS, "test", ["--preset", "tiny", "--out", str(out)])
        with pytest.raises(UserError, match=rf"{name} is in the way: it is not, or no longer, as"):
            train_part(part, run)
        assert contents(out) == {name: b"mine"}


def test_our_files_are_replaced_and_changed_ones_are_not(tmp_path):
    captions = tmp_path / "captions.txt"
    for text in ("a\n", "b\n"):
        write_index(tmp_path, files={"captions.txt": text})
        assert captions.read_text() == text
        assert read_index(tmp_path)["files"] == {"captions.txt": file_sha256(captions)}
    captions.write_text("changed\n")
    with pytest.raises(UserError, match=r"captions\.txt is in the way"):
        write_index(tmp_path, files={"captions.txt": "c\n"})
    assert captions.read_text() == "changed\n"
    captions.unlink()
    write_index(tmp_path, files={"captions.txt": "c\n"})
    assert captions.read_text() == "c\n"


def test_lost_index_is_written_anew_by_the_same_command(tmp_path):
    train(tmp_path)
    before = contents(tmp_path)
    for lost in ("model_index.json", "captions.txt"):
        (tmp_path / lost).unlink()
        train(tmp_path)
        assert contents(tmp_path) == before


def test_readme_of_ones_own_stays_and_ours_is_renewed(tmp_path):
    folder = small_pipeline.build(tmp_path / "own")
    ours = (folder / "README.md").read_text()
    shutil.rmtree(folder / "decoder")
    write_index(folder)
    assert "| decoder |" in ours
    assert "| decoder |" not in (folder / "README.md").read_text()
    for own in (ours.replace("pipeline", "picture"), ours + "\n", "mine", ""):
        (folder / "README.md").write_text(own)
        write_index(folder, leave_out="prior")
        assert (folder / "README.md").read_text() == own


def test_examples_of_ones_own_are_sealed_with_the_pipeline(tmp_path):
    folder = small_pipeline.build(tmp_path / "own")
    put(folder / "examples" / "a.png", b"picture")
    (folder / "examples" / "link.png").symlink_to("/etc/hostname")
    write_index(folder)
    assert "examples/a.png" in read_index(folder)["files"]
    assert "examples/link.png" not in read_index(folder)["files"]
    publish(folder, tmp_path / "out", "out")
    check_files(tmp_path / "out", read_manifests(tmp_path / "out"))
    assert [name for name in files_under(tmp_path / "out") if "examples" in name] == ["examples/a.png"]


def test_only_pending_weights_of_ours_are_removed(tmp_path):
    content = dump_tensors({"x": torch.zeros(3)})
    pending = f"model-{files.sha256(content)[:16]}.safetensors"
    for name in (
        pending,
        "model-0123456789abcdef.safetensors",
        "model-00001-of-00002.safetensors",
        "model-x.safetensors",
    ):
        put(tmp_path / name, content)
    finish_saving(tmp_path)
    assert files_under(tmp_path) == ["model-00001-of-00002.safetensors", "model-0123456789abcdef.safetensors",
                                     "model-x.safetensors"]  # fmt: skip


def test_partial_files_of_another_machine_of_the_same_name_stay_for_a_day(tmp_path, monkeypatch):
    theirs = [partial_name(tmp_path / "a"), partial_name(tmp_path / "b"), tmp_path / ".a.host.1.1.partial"]
    monkeypatch.setattr(files, "this_machine", lambda: "0123456789ab")
    monkeypatch.setattr(files, "process_is_alive", lambda process: False)
    theirs[0].write_text("half")
    theirs[1].mkdir()
    (theirs[1] / "inside").write_text("half")
    theirs[2].write_text("mine")
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in theirs)
    past = time.time() - files.ABANDONED - 60
    for path in (*theirs, theirs[1] / "inside"):
        os.utime(path, (past, past))
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [theirs[2]]


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_deleted_lock_lets_nobody_in(tmp_path):
    with only_writer(tmp_path / "train"):
        (tmp_path / "train" / "lock").unlink()
        with pytest.raises(UserError, match="is being written by another process"), only_writer(tmp_path / "train"):
            pass
        assert not (tmp_path / "train" / "lock").exists()
    with only_writer(tmp_path / "train"):
        pass


def test_deleted_folder_ends_its_training_before_it_saves(tmp_path):
    stage = toy.LineStage()
    batch = stage.batch

    def delete(draw):
        if len(stage.batches) == 5:
            shutil.rmtree(tmp_path / "line")
            with only_writer(tmp_path / "line" / "train"):  # somebody begins anew
                pass
        return batch(draw)

    stage.batch = delete
    with pytest.raises(UserError, match=r"line/train was deleted while this training wrote to it"):
        toy.train(tmp_path, stage)
    assert not list((tmp_path / "line").rglob("*.safetensors"))
