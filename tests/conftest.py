"""All that the tests share: made-up captioned images, a trained tiny pipeline, and ways to run the scripts."""

import fcntl
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from warm_interpreter import run_warm

from data import emoji, fashion_mnist, paths
from data.dataset import CaptionedImages
from data.fashion_mnist import FashionMNIST
from data.fashion_mnist_captions import CLASSES, PLAIN_CAPTIONS, Grammar, GrammarCaptions
from data.splits import SPLITS
from stages import log
from unclip import UnCLIP
from unclip.cli import run
from unclip.page.shelf import OpenPipeline
from unclip.registry import PARTS
from unclip.store.index import write_index
from unclip.store.sealed_json import read_record, write_record

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "checkpoints" / "fashion-mnist"
REQUIRED = [name for name, part in PARTS.items() if not part.optional]
"""The parts that every pipeline has."""
os.environ.setdefault("OMP_NUM_THREADS", "1")  # scripts beside each other do not wait in turns for the same cores
torch.set_num_threads(1)  # a pool of threads does not live on in the children that some tests fork
torch.ones(1, requires_grad=True).backward()  # after torch.export, the first call would start threads, as a pool does


@dataclass
class Finished:
    """A script's exit status and output."""

    code: int
    out: str
    err: str
    seconds: float = 0.0
    """Processor time, where it was measured."""


@dataclass
class TrainedPipeline:
    folder: Path
    seconds: dict[str, float]
    """Processor time of each stage's script, without imports; other work on the machine does not stretch it."""


def run_python(*arguments, stdin: bytes = b"", cwd: Path = ROOT, **variables: str) -> Finished:
    """Run the interpreter in a process of its own, with these environment variables beside the usual ones."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, timeout=300, env=os.environ | variables)
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_program(*arguments, cwd: Path = ROOT, **variables: str) -> Finished:
    """The same, but for the seconds that imports of other packages take: run_program("-m", "unclip", "info").

    A package that reads one of the variables when it is imported has not seen it.
    """
    return Finished(*run_warm([*map(str, arguments)], cwd, os.environ | variables))


def assert_one_error_line(finished: Finished, *words: str) -> None:
    """Check the answer to bad input: exit status 1, and one line on standard error that holds all the words."""
    assert finished.code == 1, finished
    assert finished.err.startswith("error: "), finished.err
    assert finished.err.count("\n") == 1, finished.err
    assert finished.err.endswith("\n"), finished.err
    for word in words:
        assert word in finished.err


def files_under(folder: Path) -> list[str]:
    """Every file in a folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_under(folder)}


def edit(folder: Path, **changes) -> None:
    """Change entries of a stage's config.json."""
    write_record(folder / "config.json", read_record(folder / "config.json") | changes)


def made_up_data(count: int, seed: int, name: str = "made-up") -> FashionMNIST:
    """Noise with a bright block whose place tells the class: something to learn in a few steps, at no cost."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    images = torch.randint(0, 60, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2 * label : 2 * label + 8, 4:24] += 150
    attributes = torch.zeros(count, 2, dtype=torch.long)
    return FashionMNIST(
        name=name,
        images=images,
        captioner=GrammarCaptions(Grammar.build(), labels, attributes),
        labels=labels,
        classes=CLASSES,
        class_captions=PLAIN_CAPTIONS,
        attributes=attributes,
        bounds=torch.zeros(len(CLASSES), 2, 2),
    )


SLOWEST = (
    "test_page_browser", "test_lite", "test_plan", "test_plan_memory", "test_web_browser", "test_web", "test_own_data",
    "test_demo", "test_walkthrough", "test_reliable_ranks", "test_loop", "test_swap", "test_committed",
    "test_end_to_end", "test_reliable_training",
)  # fmt: skip
"""Modules that begin first, so that no process waits at the end while the other is in a long one.

Modules with a fixture in common are apart, so that no process waits while another builds it.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def script(monkeypatch, capsys):
    """Call the main of a program, or "module:function", in this process: script("sample", "a bag", "--n", 2)."""

    def call(name: str, *arguments, stdin: bytes = b"") -> Finished:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        try:
            module, _, function = name.partition(":")
            main = getattr(importlib.import_module(module), function or "main")
            code = run.call(main, [*map(str, arguments)])
        except SystemExit as stop:  # as --help ends
            code = stop.code or 0
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return call


@pytest.fixture(autouse=True)
def blank_curves(request, monkeypatch) -> None:
    """Trainings in this process draw their curves in test_curves.py alone: each picture takes half a second."""
    if request.module.__name__ != "test_curves":
        monkeypatch.setattr(log, "draw_curves", lambda path, *_: path.touch())


@pytest.fixture(scope="session")
def splits() -> dict[str, CaptionedImages]:
    """The real Fashion-MNIST. Read only."""
    return {split: fashion_mnist.load_split(split) for split in SPLITS}


@pytest.fixture
def own_caches(tmp_path_factory, monkeypatch) -> None:
    """Send what sources decode and report to a folder of this test's own."""
    monkeypatch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def emoji_files() -> tuple[Path, Path]:
    """The emoji's font and names, fetched if need be; where that fails, the error says what to install."""
    return emoji.find_emoji_files()


def build_once(tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills. Read only: processes that share the tests share it.

    The first to ask for it builds it, while the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / name
    finished = shared / f"{name}.finished"
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            build(folder)
            finished.touch()
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> TrainedPipeline:
    """The three stages of preset tiny, trained once through the command line. Read only: copy before changing it."""
    folder = build_once(tmp_path_factory, "trained", train_tiny)
    return TrainedPipeline(folder / "tiny", json.loads((folder / "seconds.json").read_text()))


def train_tiny(folder: Path) -> None:
    """Train the three stages of preset tiny, and write the processor time of each beside them."""
    seconds = {}
    for stage in ("clip", "prior", "decoder"):
        finished = run_program(ROOT / f"train_{stage}.py", "--preset", "tiny", "--out", folder / "tiny")
        assert finished.code == 0, finished.err
        seconds[stage] = finished.seconds
    (folder / "seconds.json").write_text(json.dumps(seconds))


@pytest.fixture(scope="session")
def tiny(trained) -> UnCLIP:
    """The trained tiny pipeline, opened."""
    return UnCLIP.from_pretrained(trained.folder)


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A copy of the trained tiny pipeline that a test may damage."""
    return shutil.copytree(trained.folder, tmp_path / "pipeline", ignore=shutil.ignore_patterns("train"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """A small pipeline that is exported to ONNX, beside its source. Read only."""
    from exported_pipeline import export_small  # which needs ONNX

    return build_once(tmp_path_factory, "exported", export_small) / "small"


@pytest.fixture(scope="session")
def opened() -> OpenPipeline:
    """The committed pipeline, as the page opens it."""
    return OpenPipeline.open(COMMITTED, "cpu")


@pytest.fixture
def coat() -> Path:
    """A picture of the committed pipeline's data."""
    return COMMITTED / "examples" / "coat.png"


@pytest.fixture
def two_pipelines(tmp_path) -> Path:
    """A folder with the committed pipeline, and with a copy that lacks captions and examples."""
    shutil.copytree(COMMITTED, tmp_path / "whole")
    shutil.copytree(COMMITTED, tmp_path / "bare", ignore=shutil.ignore_patterns("examples", "captions.txt"))
    write_index(tmp_path / "bare")
    return tmp_path


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """Every write to disk fails from now on, as late as it can."""

    def refuse(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
