"""Whatever happens to states of which each rank writes a part, a complete one is left, and nothing wrong is read."""

import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy
from conftest import files_under
from faults import die_at, flip, outcome
from ranks import on_ranks, started
from runs import break_off, read_state
from torch.distributed.tensor import DTensor
from toy import OFTEN_SAVED, LineStage

from stages import log, runtime
from stages.sharded_state import ShardedStates
from stages.state import saved_states
from unclip.errors import UserError
from unclip.store.sealed_json import read_record

MANY = os.environ.get("TORTURE") == "1"
"""Whether to run the full counts."""
SHARDED = replace(OFTEN_SAVED, shard=True)


def train(folder: Path, stage: LineStage | None = None, **options) -> None:
    toy.train(folder, stage, replace(SHARDED, **options))


def steps(folder: Path) -> list[int]:
    """Steps of the states in a training's folder, the last first."""
    return [int(path.name.split("-")[1]) for path in saved_states(folder / "line" / "train")]


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "draw_curves", lambda path, *_: path.touch())
        yield


@pytest.fixture(scope="module")
def gathered() -> list[set[int]]:
    """For each rank of the undisturbed run, how many numbers the tensors had that it made whole."""
    return []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, gathered) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    sizes: list[list[int]] = []  # for each save
    save, full_tensor = ShardedStates.save, DTensor.full_tensor

    def noted_save(self, *arguments) -> None:
        sizes.append([])
        save(self, *arguments)

    def noted_full_tensor(self) -> torch.Tensor:
        if sizes:
            sizes[-1].append(self.numel())
        return full_tensor(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardedStates, "save", noted_save)
        patch.setattr(DTensor, "full_tensor", noted_full_tensor)
        gathered += on_ranks(2, lambda: (train(folder), sizes[3])[1])
    return folder


@pytest.fixture(scope="module")
def expected(undisturbed) -> dict:
    return outcome(undisturbed)


def test_last_two_states_are_kept_a_part_of_each_rank_and_no_file_is_pickled(undisturbed):
    inside = files_under(undisturbed / "line" / "train" / "state-000000012")
    assert inside == [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)] + ["state.json"]
    assert steps(undisturbed) == [12, 10]
    record = read_record(undisturbed / "line" / "train" / "state-000000012" / "state.json")
    assert record["progress"]["step"] == 12
    assert sorted(record["parts"]) == inside[:2]


def test_saving_a_state_makes_no_weight_whole(undisturbed, gathered):
    """From one save to the next: the loss and the norms of gradients alone, which are single numbers."""
    assert [set(sizes) for sizes in gathered] == [{1}, {1}]


def test_kill_of_a_rank_before_any_change_of_a_file_loses_nothing(tmp_path, expected):
    """At every point at which a rank is about to change something on the disk, for one of them here."""
    points = {0: range(1, 90), 1: range(1, 10)} if MANY else {0: (84,)}
    for rank, point in [(rank, point) for rank, some in points.items() for point in some]:
        folder = tmp_path / f"{rank}-{point}"

        def work(folder=folder, rank=rank, point=point):
            if runtime.rank() == rank:
                die_at(point)()
            train(folder)

        with started(2, work, patience=0) as (processes, _):
            processes[rank].join(60)
        on_ranks(2, lambda folder=folder: train(folder))
        assert outcome(folder) == expected, (rank, point)


@pytest.mark.skipif(not MANY, reason="TORTURE=1 kills all ranks at random moments")
def test_kill_of_all_ranks_at_any_moment_loses_nothing(tmp_path, expected, monkeypatch):
    monkeypatch.setenv("SLOWLY", "0.01")
    moments = random.Random(3)
    for trial in range(30):
        folder = tmp_path / str(trial)
        with started(2, lambda folder=folder: train(folder), patience=0):
            time.sleep(moments.uniform(0.2, 3))
        on_ranks(2, lambda folder=folder: train(folder))
        assert outcome(folder) == expected, trial


@pytest.fixture(scope="module")
def failures() -> list[tuple[str, str]]:
    """The error of each rank, and the file that it names, of the run on a full disk."""
    return []


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, failures) -> Path:
    """The folder of a training whose disk is full when it saves its third state."""
    folder = tmp_path_factory.mktemp("stopped")
    fsync = os.fsync

    def full(handle: int) -> None:
        if runtime.rank() == 1 and steps(folder) == [4, 2]:
            raise OSError(28, "No space left on device")
        fsync(handle)

    def work() -> tuple[str, str]:
        with pytest.raises(OSError, match="No space left") as caught:
            train(folder)
        return caught.value.strerror, caught.value.filename

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        failures += on_ranks(2, work)
    return folder


def test_full_disk_ends_the_training_and_leaves_the_states_before(stopped, failures):
    state = stopped / "line" / "train" / "state-000000006"
    assert failures == [("No space left on device", str(state))] * 2
    assert steps(stopped) == [4, 2]
    assert not [name for name in files_under(stopped) if ".partial" in name]


def remove_part(state: Path) -> None:
    next(state.glob("shard-00002*")).unlink()


def cut_part(state: Path) -> None:
    part = next(state.glob("shard-00001*"))
    part.write_bytes(part.read_bytes()[:-4])


def flip_part(state: Path) -> None:
    flip(next(state.glob("shard-00001*")), random.Random(1))


def remove_record(state: Path) -> None:
    (state / "state.json").unlink()


def change_record(state: Path) -> None:
    path = state / "state.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 3'))


def add_part(state: Path) -> None:
    shutil.copy(next(state.glob("shard-00001*")), state / "shard-00003.safetensors")


@pytest.mark.parametrize("damage", [remove_part, cut_part, flip_part, remove_record, change_record, add_part])
def test_damaged_state_gives_way_to_the_one_before_with_a_line(damage, stopped, tmp_path, capfd):
    folder = shutil.copytree(stopped, tmp_path / "run")
    damage(folder / "line" / "train" / "state-000000004")
    train_on_as_one(folder)
    said = capfd.readouterr().err
    [line] = [line for line in said.splitlines() if "going on from the one before, of step 2" in line]
    assert str(folder / "line" / "train" / "state-000000004") in line
    assert "state-damaged/state.json" in files_under(folder / "line" / "train") or damage is remove_record
    assert read_state(folder)[1]["step"] == 12


def train_on_as_one(folder: Path) -> None:
    """Go on in this process, from the parts of two ranks."""
    toy.train(folder, config=OFTEN_SAVED)


def test_states_that_are_all_damaged_are_refused_in_one_line(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    for state in saved_states(folder / "line" / "train"):
        cut_part(state)
    with pytest.raises(
        UserError, match=r"checksum does not match\), and so is the one before; its best weights are in"
    ):
        train_on_as_one(folder)


def test_state_of_another_model_is_refused_in_one_line(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    for name in ("model.safetensors", "config.json"):
        (folder / "line" / name).unlink()
    stage = LineStage()
    stage.model.linear = type(stage.model.linear)(3, 2)
    with pytest.raises(
        UserError, match=r"state-000000004 holds \(1,\) for .*linear.bias, but the training expects \(2,\)"
    ):
        toy.train(folder, stage, OFTEN_SAVED)


def test_states_in_one_file_and_in_parts_give_way_to_each_other(stopped, tmp_path):
    """One process goes on from parts: the last two states are kept, of either form."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    for names in (["state.safetensors", "state-000000004"], ["state.safetensors", "state-before.safetensors"]):
        with pytest.raises(KeyboardInterrupt):
            toy.train(folder, break_off(LineStage(), "batch", 3), OFTEN_SAVED)
        assert [path.name for path in saved_states(folder / "line" / "train")] == names
