"""Written files stay whole, whenever the process or the machine stops."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stages.state import Progress, keep_previous_state, load_state, open_state, save_state
from unclip.errors import UserError
from unclip.store.checksums import xxh3
from unclip.store.files import partial_name, remove_leftovers, write_atomically
from unclip.store.sealed_json import read_record, write_record
from unclip.store.tensors import load_sealed_tensors

ROOT = Path(__file__).resolve().parents[1]


def test_file_is_flushed_before_its_name_and_then_the_folder(tmp_path, monkeypatch):
    calls = []

    def noted(name, original):
        def call(*arguments, **others):
            kind = "folder" if name == "fsync" and os.path.isdir(f"/proc/self/fd/{arguments[0]}") else "file"
            calls.append(f"{name} {kind}" if name == "fsync" else name)
            return original(*arguments, **others)

        return call

    for name in ("fsync", "replace", "mkdir"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    write_atomically(tmp_path / "new" / "a", b"content")
    assert calls == ["mkdir", "fsync folder", "fsync file", "replace", "fsync folder"]


def test_record_notices_any_change_but_of_layout(tmp_path):
    path = tmp_path / "a.json"
    content = {"x": [1, 2.5, None, True], "y": {"z": "ü"}, "t": (1, 2)}
    write_record(path, content)
    assert read_record(path) == json.loads(json.dumps(content))
    path.write_text(json.dumps(json.loads(path.read_text())))
    read_record(path)
    for old, new in (("2.5", "2.6"), ("true", "false"), ("null", "0"), ('"z"', '"w"'), ('"checksum"', '"checksom"')):
        path.write_text(json.dumps(json.loads(path.read_text())).replace(old, new))
        with pytest.raises(UserError, match="has changed since it was written"):
            read_record(path)
        write_record(path, content)


def test_checksum_costs_little_of_a_save(tmp_path, monkeypatch):
    """Two percent; three times as much here, where other work disturbs the clock."""
    tensors, progress = {"x": torch.randn(4_000_000)}, Progress()

    def fastest(work) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return min(times)

    whole = fastest(lambda: save_state(tmp_path / "state.safetensors", tensors, progress))
    content = (tmp_path / "state.safetensors").read_bytes()
    assert fastest(lambda: xxh3(content)) < 0.06 * whole


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    status = subprocess.Popen([sys.executable, "-c", ""])
    status.wait()
    dead = tmp_path / partial_name(tmp_path / "a").name.replace(f".{os.getpid()}.", f".{status.pid}.")
    alive, folder = partial_name(tmp_path / "a"), tmp_path / dead.name.replace(".a.", ".b.")
    dead.write_text("half")
    alive.write_text("half")
    folder.mkdir()
    (folder / "inside").write_text("half")
    (tmp_path / ".hidden").write_text("of somebody else")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, ".hidden"])


def test_state_before_is_always_there_once_there_were_two(tmp_path):
    path = tmp_path / "state.safetensors"
    for step in range(3):
        save_state(path, {"x": torch.tensor(float(step))}, Progress(step=step))
    assert open_state(path)[1].step == 2
    keep_previous_state(path)  # and then a kill
    assert load_sealed_tensors(path)[0]["x"] == 2
    path.unlink()
    assert open_state(path)[1].step == 2
    assert load_state(tmp_path / "none" / "state.safetensors", None, None, []).step == 0
