"""Rehearse a cluster on one machine: the parts of `paper` at a fortieth of their widths or less; ranks are killed.

    python -m stages.clusters.rehearsal          # into outputs/rehearsal; some eight minutes on two CPU cores

Four ranks on the CPU stream made-up shards and train with FSDP2, accumulation and recomputation. One rank is killed
(SIGKILL) in the training of CLIP, and one in the decoder's: torchrun starts all ranks again, and they go on from the
last state. Finally sample.py draws a picture of a caption. Prints each program's kills and time. It needs Linux.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from data.stream.made_up import write_shards
from stages.state import sharded_path
from unclip.cli import signals
from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.errors import UserError
from unclip.fields import bounded

ROOT = Path(__file__).resolve().parents[2]
RANKS = 4
SHARDS = 8
ROWS = 60
"""Rows of each shard."""
KILL_AFTER = 2
"""Steps after which the first validation is done, and a rank is killed."""
CAPTION = "a red circle on a white ground"

WIDTHS = {
    "clip": {
        "--model.embed-dim": 16,
        "--model.vision.width": 16,
        "--model.vision.heads": 2,
        "--model.text.width": 16,
        "--model.text.heads": 2,
    },
    "prior": {"--model.width": 32, "--model.heads": 4},
    "decoder": {"--model.width": 8, "--model.head-dim": 8, "--model.condition-width": 32},
    "upsampler": {"--model.width": 8},
}
"""A fortieth to an eightieth of those of `paper`; the sizes of images are its own."""
LAYERS = {
    "clip": {"--model.vision.layers": 32, "--model.text.layers": 24},
    "prior": {"--model.layers": 24},
    "decoder": {"--model.text-layers": 24},
    "upsampler": {},
}
"""Layers of the transformers of `paper`."""
VALIDATION = {
    "clip": {},
    "prior": {"--evaluate-on": 8, "--sampling.steps": 4},
    "decoder": {"--evaluate-on": 4, "--sampling.steps": 4},
    "upsampler": {"--evaluate-on": 2, "--sampling.upscale-steps": 2},
}
"""Few images, drawn in few steps."""


@dataclass(frozen=True)
class RehearsalOptions:
    out: Path = Path("outputs/rehearsal")
    """New folder for the shards, the pipeline, the logs, and the picture."""
    steps: int = bounded(4, KILL_AFTER + 2, 10**6)
    """Steps of each training."""
    shallower: int = bounded(4, 1, 24)
    """Divide the numbers of the transformers' layers by this; 1 takes three times as long."""


@dataclass(frozen=True)
class Program:
    """A program that torchrun starts on all ranks."""

    name: str
    words: tuple[str, ...]
    """The program and its options."""
    is_killed: bool = False
    """Whether one of its ranks is to be killed."""


def list_programs(options: RehearsalOptions) -> list[Program]:
    """The programs of all parts in turn, as on a cluster."""
    data = ("--data", str(options.out / "shards"), "--data.stream")
    return [
        Program("clip", ("train_clip.py", *training_options(options, "clip"), *data), is_killed=True),
        Program("embed 256", embedding_command(options, 256)),
        Program("prior", ("train_prior.py", *training_options(options, "prior"))),
        Program("embed 64", embedding_command(options, 64)),
        Program("decoder", ("train_decoder.py", *training_options(options, "decoder")), is_killed=True),
        Program("upsampler", ("-m", "stages.train", "upsampler", *training_options(options, "upsampler"))),
    ]


def training_options(options: RehearsalOptions, part: str) -> list[str]:
    """Options of a part's training."""
    values = {
        "--preset": "paper",
        "--out": options.out / "pipeline",
        "--data.workers": 1,
        "--train.device": "cpu",
        "--train.batch-size": 2 * RANKS,
        "--train.accumulate": 2,
        "--train.steps": options.steps,
        "--train.warmup": 1,
        "--train.save-every": 1,
        "--train.evaluate-every": KILL_AFTER,
    }
    layers = {option: count // options.shallower for option, count in LAYERS[part].items()}
    values |= WIDTHS[part] | layers | VALIDATION[part]
    return [*(str(word) for pair in values.items() for word in pair), "--train.shard", "--train.recompute"]


def embedding_command(options: RehearsalOptions, size: int) -> tuple[str, ...]:
    """The program that embeds the stream's images as a part reads them."""
    pipeline = str(options.out / "pipeline")
    return ("-m", "stages.embed", "--out", pipeline, "--data.size", str(size), "--device", "cpu")


def rehearse(program: Program, out: Path) -> str:
    """Run a program to its end. Returns its row of the table. Raises UserError if it fails, or was not killed."""
    began = time.perf_counter()
    log = out / f"{program.name.replace(' ', '-')}.log"
    restarts = str(int(program.is_killed))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", restarts]
    has_killed = False
    is_signalled = False
    with open(log, "w") as file, signals.postponed() as stop:
        process = start_python([*launch, *program.words], out, file)
        while process.poll() is None:
            if program.is_killed and not has_killed:
                has_killed = kill_rank(process, out / "pipeline" / program.name / "train")
            if stop.number and not is_signalled:  # torchrun ends its ranks
                process.send_signal(stop.number)
                is_signalled = True
            time.sleep(0.1)
    if process.returncode:
        raise UserError(f"{program.name} has ended with status {process.returncode}; see {log}")
    went_on = re.findall(r"going on from step (\d+)", log.read_text(errors="replace"))
    expected = int(has_killed)
    if len(went_on) != expected or has_killed != program.is_killed:
        raise UserError(f"{program.name}: {len(went_on)} restarts from a state in the log, not {expected}; see {log}")
    seconds = f"{time.perf_counter() - began:.0f}"
    return format_row(program.name, str(expected), went_on[0] if went_on else "-", seconds)


def start_python(words: list[str], out: Path, log: IO[str]) -> subprocess.Popen:
    """Start Python with these words; its caches go into the rehearsal's folder."""
    variables = {"UNCLIP_CACHE": str(out.resolve() / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=os.environ | variables, stdout=log, stderr=log)


def kill_rank(launcher: subprocess.Popen, folder: Path) -> bool:
    """Kill the launcher's last rank, if the folder has a state. Returns whether it did."""
    if not sharded_path(folder, KILL_AFTER).exists():
        return False
    try:
        ranks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
    except (OSError, IndexError):  # it has just ended
        return False
    return True


def format_row(name: str, kills: str, went_on: str, seconds: str) -> str:
    return f"{name:<12}{kills:>6}{went_on:>20}{seconds:>10}"


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(RehearsalOptions, __doc__, argv=argv)
    out = options.out.resolve()
    if not Path("/proc/self/task").exists():
        raise UserError("the rehearsal finds the ranks in /proc, which this system does not have; run it on Linux")
    if out.exists():
        raise UserError(f"{options.out} exists; delete it, or choose another --out")
    write_shards(out / "shards", 256, SHARDS, ROWS)
    print(format_row("", "kills", "went on from step", "seconds"), flush=True)
    for program in list_programs(replace(options, out=out)):
        print(rehearse(program, out), flush=True)
    with open(out / "sample.log", "w") as log:
        words = ["sample.py", CAPTION, "--checkpoint", str(out / "pipeline"), "--n", "2", "--device", "cpu"]
        words += ["--out", str(out / "picture")]
        if status := start_python(words, out, log).wait():
            raise UserError(f"sample.py has ended with status {status}; see {out / 'sample.log'}")
    print(
        f"{RANKS} ranks trained {options.steps} steps of each part; the picture is {options.out / 'picture/grid.png'}"
    )


if __name__ == "__main__":
    run(main)
