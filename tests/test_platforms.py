"""Other systems than the one that the tests run on: what Windows lacks, and line endings that git changes."""

import shutil
import subprocess

import pytest
from conftest import ROOT, run_python
from small_pipeline import build

from unclip import UnCLIP
from unclip.errors import UserError

WINDOWS = """
import os, shutil, signal, sys, warnings
import numpy, torch, tokenizers, torch.distributed, tqdm, tyro, PIL.Image  # these look for the true system

for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fork", "getuid", "killpg", "getpgid", "set_blocking",
             "sysconf", "statvfs", "sched_getaffinity", "uname", "mkfifo", "pread", "posix_fallocate"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGQUIT", "pthread_kill", "pthread_sigmask", "setitimer"):
    delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
sys.platform = "win32"
shutil._use_fd_functions = False
open_file = os.open

def open_no_folder(path, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return open_file(path, *rest, **options)

def end_process(process, number):
    raise AssertionError(f"os.kill would end process {process}")

os.open = open_no_folder
os.kill = end_process
warnings.filterwarnings("error", category=EncodingWarning, module="unclip")  # text is not UTF-8 there by default
"""
"""Takes away what Python has on Linux and not on Windows."""

PROGRAMS = """
from pathlib import Path
from stages import runtime
from unclip.cli import signals
from unclip.cli.main import run_command
from unclip.cli.run import call
from unclip.page.drawing import draw
from unclip.page.shelf import Shelf
from unclip.store import files

signals.install()
pipeline, out = sys.argv[1:]
few = ["--checkpoint", pipeline, "--out", out]
sample = ["sample", "bag", *few, "--npz", "--gif"]
for arguments in (sample, sample, ["edit", "vary", f"{out}/grid.png", *few], ["info", pipeline]):
    assert call(run_command, arguments) == 0, arguments
files.partial_name(Path(out) / "x").touch()
files.remove_leftovers(Path(out))
assert list(draw(Shelf(Path(pipeline).parent).open("pipeline"), "bag", 1, 0, steps=2))
assert call(lambda _: runtime.start("cpu")) == 1
"""


def test_pipeline_is_used_without_what_windows_lacks(tmp_path):
    """Sampling, editing and the page work; training says in one line that it does not."""
    pipeline = build(tmp_path / "pipeline")
    finished = run_python("-X", "warn_default_encoding", "-c", WINDOWS + PROGRAMS, pipeline, tmp_path / "out")
    assert finished.code == 0, finished.err
    assert finished.err.splitlines()[-1] == "error: training needs Linux or macOS; on Windows, train within WSL"


def git(*arguments, cwd=None) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *identity, *map(str, arguments)], cwd=cwd, check=True, capture_output=True)


def test_clone_that_converts_line_endings_leaves_every_file_as_it_is(tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(ROOT / "checkpoints" / "emoji", origin / "checkpoints" / "emoji")
    shutil.copy(ROOT / ".gitattributes", origin)
    git("init", "-q", cwd=origin)
    git("add", ".", cwd=origin)
    git("commit", "-qm", "files", cwd=origin)
    git("clone", "-q", "-c", "core.autocrlf=true", origin, tmp_path / "clone")
    for path in origin.rglob("*.*"):
        if path.is_file() and ".git" not in path.parts:
            assert (tmp_path / "clone" / path.relative_to(origin)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("name", ["tokenizer.json", "prior/config.json"])
def test_changed_line_endings_are_told_from_other_changes(name, tmp_path):
    folder = build(tmp_path)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\n", b"\r\n"))
    with pytest.raises(
        UserError, match=rf"^{path} has other line endings [^\n]* core.autocrlf=false checkout -- {path}$"
    ):
        UnCLIP.from_pretrained(folder)
    path.write_bytes(content + b"\n")
    with pytest.raises(UserError, match="SHA-256"):
        UnCLIP.from_pretrained(folder)
