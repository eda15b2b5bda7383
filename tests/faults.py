"""Ways to break a training, and to compare what is left with one that was left alone."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from runs import read_state

from unclip.cli import run, signals
from unclip.errors import UserError

TIMES = ("seconds", "images_per_second")


class Child(NamedTuple):
    process: int
    log: Path

    def wait(self) -> tuple[int, str]:
        """The exit status, negative for a signal that ended it, and what it wrote to standard error."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        return status, self.log.read_text()

    def said(self, text: str) -> None:
        """Wait until it has said something."""
        for _ in range(3000):
            if text in self.log.read_text():
                return
            time.sleep(0.01)
        raise AssertionError(self.log.read_text())

    def kill(self, number: int) -> None:
        os.kill(self.process, number)


def forked(work: Callable[[], object], log: Path) -> Child:
    """Run work in a process of its own, without the seconds that imports take."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    ready, tell = os.pipe()
    if process := os.fork():
        os.read(ready, 1)  # it has taken the signals over
        return Child(process, log)
    os.dup2(os.open(log, os.O_WRONLY | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    status = 70
    try:
        listen()
        signals.STOP.number = 0
        signals.install()
        os.write(tell, b".")
        status = run.call(lambda _: status if isinstance(status := work(), int) else 0)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(status)


def listen() -> None:
    """Undo what a shell does to a program in the background, which ignores signals that its terminal sends."""
    for number in signals.NUMBERS:
        signal.signal(number, signal.SIG_DFL)


EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.truncate", "shutil.rmtree")


def die_at(point: int) -> Callable[[], None]:
    """Make this process end, as by kill -9, just before it changes a file for the point-th time."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in EVENTS and not (event == "open" and not writes(arguments)):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(hook)


def writes(arguments: tuple) -> bool:
    """Whether the arguments of an audited `open` ask for a file to be written."""
    path, _, flags = arguments
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR)) and isinstance(path, (str, os.PathLike))


def flip(path: Path, random: random.Random) -> str:
    """Flip one bit of a file. Returns where."""
    content = bytearray(path.read_bytes())
    place = random.randrange(len(content))
    content[place] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return f"{path.name} at {place}"


def outcome(folder: Path, name: str = "line") -> dict:
    """All that a training leaves behind, but for times."""
    stage = folder / name
    lines = [json.loads(line) for line in (stage / "train" / "metrics.jsonl").read_text().splitlines()]
    tensors, progress = read_state(folder, name)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {
        "weights": (stage / "model.safetensors").read_bytes(),
        "config": (stage / "config.json").read_bytes(),
        "metrics": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        "state": {key: value.numpy().tobytes() for key, value in tensors.items()},
        "progress": progress | {"seconds": None},
        "files": sorted(name for name in found if "damaged" not in name),
    }


def one_line(text: str, start: str = "error: ") -> bool:
    """Whether a program's last words are one line that begins so, and nothing is a traceback."""
    return text.splitlines()[-1].startswith(start) and "Traceback" not in text if text else False


def refused(work: Callable[[], object]) -> str:
    """The one line with which some work is refused; "" if it is done."""
    message = ""
    try:
        work()
    except (UserError, OSError) as error:
        message = str(error)
    assert "\n" not in message, message
    return message


def poisoned(stage, call: int, factor: float):
    """A stage whose loss is multiplied at one step: by NaN, or by what overflows the gradient."""
    stage.objective.poison = {call: factor}
    return stage


def quiet_threads() -> None:
    torch.set_num_threads(1)
