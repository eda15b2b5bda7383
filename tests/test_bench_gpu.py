"""The measurements of a GPU, tried on a CPU at tiny sizes."""

import json
import os
import time
from dataclasses import replace

import pytest
from conftest import ROOT

from stages.bench import contender, gpu
from stages.bench.gpu import GPUOptions, committed_decoder, data_sheet_rate
from stages.bench.own_process import in_own_process

MODEL_CARD = (ROOT / "checkpoints" / "fashion-mnist" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch):
    monkeypatch.setattr(contender, "MATRIX_SIZE", 32)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    monkeypatch.setattr(gpu, "ROUND", 1)
    monkeypatch.setattr(gpu, "WAYS", {way: gpu.WAYS[way] for way in ("graph", "compiled, graph")})
    tiny = gpu.preset_run("decoder", "tiny")
    monkeypatch.setattr(gpu, "committed_decoder", lambda: replace(tiny, train=replace(tiny.train, batch_size=2)))


def test_every_way_of_every_work_is_measured_and_one_that_fails_stops_no_other(tmp_path, monkeypatch):
    compiled = []

    def compile_or_fail(model):
        compiled.append(model)
        if len(compiled) == 2:
            raise RuntimeError("the compiler is missing")

    monkeypatch.setattr(gpu, "compile_blocks", compile_or_fail)
    monkeypatch.setattr(gpu, "in_own_process", lambda limit, function, *args: function(*args[:-1], 0.01))
    printed = gpu.measure(GPUOptions(minutes=10, device="cpu", preset="tiny", batch=4, out=tmp_path))
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(rows) == 2 + 2 * 3
    assert len(compiled) == 3
    assert [row["failed"] for row in rows if "failed" in row] == ["the compiler is missing"]
    for row in rows:
        assert "failed" in row or row.get("drawn", 0) > 0 or row["training_seconds"] > 0 < row["share_of_matrix_rate"]
    assert printed.startswith((tmp_path / "gpu.md").read_text())
    operations = {row["work"]: set() for row in rows}
    for row in rows:
        operations[row["work"]] |= {row["operations"]} if "operations" in row else set()
    assert all(len(found) == 1 for found in operations.values()), "all ways do the same work"


def test_committed_decoders_recipe_is_the_one_of_its_model_card():
    chosen = committed_decoder()
    assert f"--train.steps {chosen.train.steps}" in MODEL_CARD
    assert f"--train.batch-size {chosen.train.batch_size} --train.warmup 300" in MODEL_CARD
    assert f"--model.width {chosen.model.network.unet.width}" in MODEL_CARD


def test_process_of_its_own_gives_its_result_or_its_error_or_is_killed_in_time():
    assert in_own_process(60, divmod, 7, 2) == (3, 1)
    with pytest.raises(RuntimeError, match="integer"):
        in_own_process(60, divmod, 7, 0)
    with pytest.raises(RuntimeError, match="its process ended with status 3"):
        in_own_process(60, os._exit, 3)
    with pytest.raises(TimeoutError, match="not done in 0 s"):
        in_own_process(0.1, time.sleep, 60)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H200", 989e12), ("CPU", None)],
)
def test_data_sheet_is_found_by_the_name_of_the_gpu(name, peak):
    assert data_sheet_rate(name) == peak
