"""Whatever happens to one of several ranks, nothing is lost, and it is said once."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch.distributed as dist
from faults import listen, outcome
from ranks import on_ranks
from toy import OFTEN_SAVED, train

from stages import roll_call
from stages.state import open_state

ROOT = Path(__file__).resolve().parents[1]
MANY = os.environ.get("TORTURE") == "1"
"""Whether to run the full counts."""


def ranks(folder: Path, log: Path, *options: str, restarts: int = 0, **variables: str) -> subprocess.Popen:
    """Two ranks under torchrun, whose own report of a failure goes elsewhere."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "--max-restarts", str(restarts), "--log-dir", log, "--redirects", "3",
               ROOT / "tests" / "toy.py", folder, *options]  # fmt: skip
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


@pytest.mark.skipif(not MANY, reason="TORTURE=1 kills ranks that are not started again")
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


@pytest.mark.parametrize(("shard", "rank"), [*product(["false", "true"], [0, 1])] if MANY else [("true", 0)])
def test_killed_rank_is_started_again_with_the_others_and_goes_on(shard, rank, tmp_path):
    """The state of step 2 is complete when that of step 4 is begun."""
    run = ranks(tmp_path / "run", tmp_path / "log", f"shard={shard}", restarts=1, SLOWLY="0.1")
    wait_for(tmp_path / "log", "line 4/12")
    os.kill(workers(run)[rank], signal.SIGKILL)
    assert run.wait(90) == 0, told(tmp_path / "log")
    said = told(tmp_path / "log")
    step = int(said.split("going on from step ")[1].split()[0])
    assert 2 <= step <= 6
    assert "Traceback" not in said
    assert said.count(f"error: another rank has ended (rank {rank})") == 1
    on_ranks(2, lambda: train(tmp_path / "alone", config=replace(OFTEN_SAVED, shard=shard == "true")))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")


@pytest.mark.skipif(not MANY, reason="TORTURE=1 trains on two hosts, of which one loses its rank")
@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_hosts_train_together_and_come_back(shard, tmp_path):
    """Network namespaces with a cable between them, or two addresses of this host where they are not to be had."""
    with two_hosts() as hosts:
        runs = []
        for number, host in enumerate(hosts):
            command = [*host.prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                       "--nproc-per-node", "1", "--rdzv-id", "test", "--rdzv-backend", "c10d",
                       "--rdzv-endpoint", f"{hosts[0].address}:29517", "--rdzv-conf", f"is_host={number == 0}",
                       "--local-addr", host.address, "--max-restarts", "2",
                       "--log-dir", tmp_path / "log" / str(number), "--redirects", "3",
                       ROOT / "tests" / "toy.py", tmp_path / "run", f"shard={shard}"]  # fmt: skip
            variables = {"GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1", "SLOWLY": "0.2"}
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            runs.append(subprocess.Popen(command, env=os.environ | variables, **quiet))
        wait_for(tmp_path / "log", "line 4/12")
        os.kill(workers(runs[1])[0], signal.SIGKILL)
        assert [run.wait(120) for run in runs] == [0, 0], told(tmp_path / "log")
    assert "going on from step" in told(tmp_path / "log")
    on_ranks(2, lambda: train(tmp_path / "alone", config=replace(OFTEN_SAVED, shard=shard == "true")))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")


class Host(NamedTuple):
    address: str
    interface: str
    prefix: tuple[str, ...] = ()
    """Begins a command that runs there."""


@contextlib.contextmanager
def two_hosts() -> Iterator[list[Host]]:
    names = [f"unclip{os.getpid()}{letter}" for letter in "ab"]
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
    for number, name in enumerate(names, 1):
        commands.append(f"-n {name} addr add 10.77.0.{number}/24 dev cable")
        commands += [f"-n {name} link set {interface} up" for interface in ("lo", "cable")]
    try:
        if shutil.which("ip") and not any(subprocess.call(["ip", *command.split()]) for command in commands):
            yield [Host(f"10.77.0.{i}", "cable", ("ip", "netns", "exec", name)) for i, name in enumerate(names, 1)]
        else:
            yield [Host(f"127.0.0.{number}", "lo") for number in (1, 2)]
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.call(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def test_ranks_meet_though_the_store_remembers_others():
    """Twice on one store, after an attempt that ended before all of its ranks were there."""
    store = dist.HashStore()
    store.set("roll call", "old")
    store.set("reply 1", "old:ended")
    store.set("here old", "old:ended")
    for _ in range(2):
        with ThreadPoolExecutor(3) as threads:
            others = [threads.submit(roll_call.answer, store, rank) for rank in (1, 2)]
            time.sleep(0.05)
            word = threads.submit(roll_call.call, store, 3).result(10)
            assert [other.result(10) for other in others] == [word, word]


def test_error_on_all_ranks_is_told_once(tmp_path):
    train(tmp_path / "run", config=replace(OFTEN_SAVED, lr=0.01))
    run = ranks(tmp_path / "run", tmp_path / "log")
    assert run.wait(90) == 1
    lines = [line for line in told(tmp_path / "log").splitlines() if line.startswith(("error", "Traceback"))]
    assert len(lines) == 1, lines
    assert "holds a run with train.lr = 0.01, not 0.05" in lines[0]
