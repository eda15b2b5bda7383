"""Whatever happens to one of several ranks, nothing is lost, and it is said once."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from faults import listen
from toy import OFTEN_SAVED, train

from stages.state import open_state

ROOT = Path(__file__).resolve().parents[1]


def ranks(folder: Path, log: Path, **variables: str) -> subprocess.Popen:
    """Two ranks under torchrun, whose own report of a failure goes elsewhere."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "--log-dir", log, "--redirects", "3", ROOT / "tests" / "toy.py", folder]  # fmt: skip
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=listen,
        env=os.environ | quiet | variables,
    )


def told(log: Path) -> str:
    return "".join(path.read_text() for path in sorted(log.rglob("stderr.log")))


def wait_for(log: Path, text: str) -> None:
    for _ in range(6000):
        if text in told(log):
            return
        time.sleep(0.01)
    raise AssertionError(told(log))


def workers(run: subprocess.Popen) -> list[int]:
    return [int(one) for one in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]


def test_signal_to_several_ranks_saves_once_and_says_so_once(tmp_path):
    run = ranks(tmp_path / "run", tmp_path / "log", SLOWLY="0.3")
    wait_for(tmp_path / "log", "line 2/12")
    run.send_signal(signal.SIGTERM)
    run.wait(60)
    said = told(tmp_path / "log")
    assert said.count("stopped by SIGTERM after step") == 1, said
    assert "Traceback" not in said
    step = int(said.split("after step ")[1].split(",")[0])
    assert open_state(tmp_path / "run" / "line" / "train" / "state.safetensors")[1].step == step


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_that_is_killed_is_named_by_the_other_in_one_line(rank, tmp_path):
    run = ranks(tmp_path / "run", tmp_path / "log", SLOWLY="0.3")
    wait_for(tmp_path / "log", "line 2/12")
    os.kill(workers(run)[rank], signal.SIGKILL)
    run.wait(60)
    said = told(tmp_path / "log")
    assert "Traceback" not in said, said
    lines = [line for line in said.splitlines() if line.startswith(("error: ", "stopped "))]
    assert len(lines) == 1, lines
    assert f"another rank has ended (rank {rank})" in lines[0]


def test_error_on_all_ranks_is_told_once(tmp_path):
    train(tmp_path / "run", config=replace(OFTEN_SAVED, lr=0.01))
    run = ranks(tmp_path / "run", tmp_path / "log")
    assert run.wait(90) == 1
    lines = [line for line in told(tmp_path / "log").splitlines() if line.startswith(("error", "Traceback"))]
    assert len(lines) == 1, lines
    assert "holds a run with train.lr = 0.01, not 0.05" in lines[0]
