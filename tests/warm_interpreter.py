"""An interpreter that has imported what is slow to import, and forks itself for each program that it is to run.

Started as a script, it reads requests from standard input, a line of JSON each, and answers with lines of JSON. Of this
repository it imports nothing beforehand: each program imports its own modules, as it would in a new interpreter.
"""

import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SLOW = ("torch", "torch._dynamo", "torch.distributed.fsdp", "torchvision", "datasets", "matplotlib.pyplot", "tyro")
LIMIT = 300
"""Seconds after which a program is ended."""


def run_warm(arguments: Sequence[str], cwd: Path, variables: Mapping[str, str]) -> tuple[int, str, str, float]:
    """Run a program: its path, "-m" and a module, or "-c" and code, then its arguments.

    Returns its exit status, negative for a signal that ended it, its output, its errors, and the seconds of processor
    time that it took.
    """
    interpreter = start_interpreter()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        request = {"arguments": arguments, "cwd": str(cwd), "variables": dict(variables)}
        interpreter.stdin.write(json.dumps(request | {"out": str(out), "err": str(err)}) + "\n")
        interpreter.stdin.flush()
        status, seconds = json.loads(interpreter.stdout.readline())
        return status, out.read_text(), err.read_text(), seconds


@functools.cache
def start_interpreter() -> subprocess.Popen:
    """Start the interpreter. It ends when this process does, as its standard input ends."""
    return subprocess.Popen([sys.executable, __file__], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def serve() -> None:
    """Answer each request with the exit status and the seconds."""
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            become_program(**json.loads(line))
        _, status, usage = os.wait4(process, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]), flush=True)


def become_program(arguments: list[str], cwd: str, variables: dict[str, str], out: str, err: str) -> None:
    """Run a program as this process, and end with its exit status."""
    signal.alarm(LIMIT)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    replace_streams(out, err)
    first, *others = arguments
    sys.path[0] = cwd if first in ("-m", "-c") else str(Path(first).resolve().parent)
    sys.path[1:1] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = others if first == "-m" else arguments
    if first == "-m":
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = [first, *others[1:]]
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(first, run_name="__main__")
    sys.exit(0)


def replace_streams(out: str, err: str) -> None:
    """Read nothing from standard input, and write standard output and standard error to files."""
    writing = os.O_WRONLY | os.O_CREAT
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, writing), (2, err, writing)):
        os.dup2(os.open(path, flags), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # the other one has read ahead


if __name__ == "__main__":
    for name in SLOW:
        importlib.import_module(name)
    serve()
