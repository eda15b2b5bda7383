"""Rehearse a cluster on one machine: all parts of `paper` at a hundredth of their widths; ranks are killed.

    python -m stages.clusters.rehearsal          # into outputs/rehearsal; some eight minutes on two CPU cores

Four ranks on the CPU train from made-up shards, which are streamed, with FSDP2, accumulation and recomputation. One
rank is killed (SIGKILL) in the training of CLIP, and one in the decoder's: torchrun starts all ranks again, and they go
on from the last state. At last a picture is drawn from a caption. Prints what each program took and lost. It needs
Linux.
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

from data.stream.made_up import write_shards
from stages.state import sharded_path
from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.errors import UserError
from unclip.fields import bounded

ROOT = Path(__file__).resolve().parents[2]
RANKS = 4
SHARDS = (8, 60)
"""Shards, and rows of each."""
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
"""A hundredth of those of `paper`, or a little more; the sizes of images are its own."""
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
    part: str = ""
    """The part that it trains."""
    is_killed: bool = False
    """Whether one of its ranks is to be killed."""


def list_programs(options: RehearsalOptions) -> list[Program]:
    """The programs of all parts in turn, as on a cluster."""
    data = ("--data", str(options.out / "shards"), "--data.stream")
    return [
        Program("clip", ("train_clip.py", *training(options, "clip"), *data), "clip", is_killed=True),
        Program("embed 256", embedding(options, 256)),
        Program("prior", ("train_prior.py", *training(options, "prior")), "prior"),
        Program("embed 64", embedding(options, 64)),
        Program("decoder", ("train_decoder.py", *training(options, "decoder")), "decoder", is_killed=True),
        Program("upsampler", ("-m", "stages.train", "upsampler", *training(options, "upsampler")), "upsampler"),
    ]


def training(options: RehearsalOptions, part: str) -> list[str]:
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


def embedding(options: RehearsalOptions, size: int) -> tuple[str, ...]:
    """The program that embeds the stream's images as a part reads them."""
    pipeline = str(options.out / "pipeline")
    return ("-m", "stages.embed", "--out", pipeline, "--data.size", str(size), "--device", "cpu")


def rehearse(program: Program, out: Path) -> str:
    """Run a program to its end. Returns its row of the table. Raises UserError if it fails, or was not killed."""
    began = time.perf_counter()
    log = out / f"{program.name.replace(' ', '-')}.log"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", "1"]
    with open(log, "w") as file:
        process = start([*launch, *program.words], out, file)
        if program.is_killed:
            kill_rank(process, out / "pipeline" / program.part / "train")
        status = process.wait()
    if status:
        raise UserError(f"{program.name} has ended with status {status}; see {log}")
    went_on = re.findall(r"going on from step (\d+)", log.read_text(errors="replace"))
    if len(went_on) != program.is_killed:
        raise UserError(f"{program.name} has gone on {len(went_on)} times from a state, not as killed; see {log}")
    return row(program.name, str(int(program.is_killed)), *went_on or "-", f"{time.perf_counter() - began:.0f}")


def start(words: list[str], out: Path, log: object) -> subprocess.Popen:
    """Start Python with these words; its caches go into the rehearsal's folder."""
    own = {"UNCLIP_CACHE": str(out.resolve() / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=os.environ | own, stdout=log, stderr=log)


def kill_rank(launcher: subprocess.Popen, folder: Path) -> None:
    """Kill the launcher's last rank, once the folder has a state; the rank may be at any of the next steps."""
    while launcher.poll() is None:
        if sharded_path(folder, KILL_AFTER).exists():
            ranks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            os.kill(int(ranks[-1]), signal.SIGKILL)
            return
        time.sleep(0.1)


def row(name: str, kills: str, went_on: str, seconds: str) -> str:
    return f"{name:<12}{kills:>6}{went_on:>20}{seconds:>10}"


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(RehearsalOptions, __doc__, argv=argv)
    out = options.out.resolve()
    if out.exists():
        raise UserError(f"{options.out} exists; delete it, or choose another --out")
    write_shards(out / "shards", 256, *SHARDS)
    print(row("", "kills", "went on from step", "seconds"), flush=True)
    for program in list_programs(replace(options, out=out)):
        print(rehearse(program, out), flush=True)
    with open(out / "sample.log", "w") as log:
        words = ["sample.py", CAPTION, "--checkpoint", str(out / "pipeline"), "--n", "2", "--out", str(out / "picture")]
        if status := start(words, out, log).wait():
            raise UserError(f"sample.py has ended with status {status}; see {out / 'sample.log'}")
    print(
        f"{RANKS} ranks trained {options.steps} steps of each part; the picture is {options.out / 'picture/grid.png'}"
    )


if __name__ == "__main__":
    run(main)
