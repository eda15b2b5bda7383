"""The distributions `unclip` and `unclip-lite`, the optional packages, and the files that describe the project."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, assert_one_error_line, run_program
from exported_pipeline import open_source
from own_images import with_parquet

import unclip
from unclip.cli.run import FOR_TRAINING, call
from unclip.fonts import label_font
from unclip.lite.distribution import needed_files, write_project

PIPELINE = ROOT / "tests" / "pipelines" / "format-4"
BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"


def build(project: Path, kind: str, out: Path) -> Path:
    """Build a wheel or an sdist of a project, by the tools that are installed here."""
    done = run_program("-c", BUILD, kind, out, cwd=project)
    assert done.code == 0, done.err
    return out / done.out.splitlines()[-1]


def make_environment(folder: Path, wheel: Path) -> Path:
    """Install a wheel into a new environment, which sees the packages that the tests run with, but not this checkout.

    Returns the folder of its programs.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the files that are built from, with some of those that are not."""
    folder = tmp_path_factory.mktemp("built") / "checkout"
    shutil.copytree(ROOT / "unclip", folder / "unclip", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "sample.py", "data/sources.py",
                 "stages/loop.py", "tests/test_text.py"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(checkout) -> Path:
    return build(checkout, "build_sdist", checkout.parent)


@pytest.fixture(scope="module")
def wheel(sdist) -> Path:
    with tarfile.open(sdist) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
        archive.extractall(sdist.parent, **safely)
    return build(sdist.parent / sdist.name.removesuffix(".tar.gz"), "build_wheel", sdist.parent)


def shipped_files() -> set[str]:
    """Modules, the mark of typed packages, and the page's files."""
    found = [path for path in (ROOT / "unclip").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix() for path in found if path.name != "README.md"}


def test_the_wheel_holds_the_library_alone_and_the_sdist_what_it_is_built_from(sdist, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"unclip-{unclip.__version__}.dist-info/METADATA").decode()
    assert {name for name in names if ".dist-info/" not in name} == shipped_files()
    assert "License-Expression: MIT" in metadata
    required = set(re.findall(r"^Requires-Dist: ([a-z_]+)[^;]*$", metadata, re.MULTILINE))
    assert "torch" in required
    assert not required & set(FOR_TRAINING)
    with tarfile.open(sdist) as archive:
        kept = {name.partition("/")[2] for name in archive.getnames()}
    assert kept >= shipped_files() | {"README.md", "LICENSE", "pyproject.toml"}
    assert not [name for name in kept if name.startswith(("tests", "data", "stages"))]


DRAW = """
import sys
for name in ("datasets", "matplotlib", "torchvision", "xxhash"):
    sys.modules[name] = None  # cannot be imported
from unclip.cli.main import main
main()
"""


def test_the_wheel_draws_in_a_new_environment_without_what_only_training_needs(wheel, tmp_path):
    programs = make_environment(tmp_path / "venv", wheel)
    version = subprocess.run([programs / "unclip", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert version.stdout == f"unclip {unclip.__version__}\n", version.stderr
    few = ["--steps", "2", "--prior-steps", "2", "--out", "out"]
    command = [programs / "python", "-c", DRAW, "sample", "a bag", "--checkpoint", PIPELINE, *few]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "grid.png").is_file()


@pytest.mark.parametrize("name", FOR_TRAINING)
def test_a_missing_package_of_training_is_one_line(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    assert call(lambda _: __import__(name)) == 1
    assert capsys.readouterr().err == f"error: this needs {name}, which is not installed: pip install 'unclip[train]'\n"


def test_a_trainer_names_the_package_that_reads_its_data(monkeypatch, script, tmp_path):
    with_parquet(tmp_path / "x" / "train.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    finished = script("train_clip", "--preset", "tiny", "--data", tmp_path / "x", "--out", tmp_path / "run")
    assert_one_error_line(finished, "this needs datasets", "pip install 'unclip[train]'")


def test_labels_of_other_letters_are_boxes_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert label_font("a bag", 12)
    with pytest.warns(UserWarning, match="finding a font needs matplotlib"):
        assert label_font("日", 12)


# --- without PyTorch --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def light_wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    write_project(folder / "project")
    return build(folder / "project", "build_wheel", folder)


DRAW_LIGHT = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors", "unclip"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refuse())
from unclip_lite import Lite
print(json.dumps(Lite(sys.argv[1])("a bag", n=10, steps=2, prior_steps=2).images.tolist()))
"""


def test_the_light_wheel_shares_no_file_with_the_other(light_wheel):
    with zipfile.ZipFile(light_wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        texts = [archive.read(name).decode() for name in names]
    assert {name.split("/")[0] for name in names} == {"unclip_lite"}
    assert len(names) == len(needed_files()) + 2
    assert not [text for text in texts if re.search(r"^\s*(from|import) (unclip|torch)\b", text, re.MULTILINE)]


def light_environment(folder: Path, requirement: str | Path, *options: str) -> Path:
    """Install into a new environment with nothing else in it; returns its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", "--quiet", *options, requirement], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the light distribution is not tested, as its packages cannot be fetched: {done.stderr[-200:]}")
    return next(folder.glob("lib/python*/site-packages"))


def test_the_light_wheel_draws_without_pytorch_and_without_the_other(light_wheel, exported, tmp_path):
    packages = light_environment(tmp_path / "venv", light_wheel, "--no-deps", "--no-index")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    drawn = run_light(tmp_path / "venv", exported)
    expected = open_source(exported)("a bag", n=10, steps=2, prior_steps=2).images
    assert (np.abs(drawn - expected) <= 1).mean() > 0.999


def run_light(environment: Path, exported: Path) -> np.ndarray:
    command = [environment / "bin" / "python", "-c", DRAW_LIGHT, exported]
    done = subprocess.run(command, capture_output=True, text=True, cwd=environment)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


@pytest.mark.skipif("TORTURE" not in os.environ, reason="fetches 60 MB; run it with TORTURE=1")
def test_the_light_environment_is_small(light_wheel, exported, tmp_path):
    packages = light_environment(tmp_path / "venv", light_wheel)
    assert len(run_light(tmp_path / "venv", exported)) == 10
    assert not (packages / "torch").exists()
    assert sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) < 150e6


# --- files for GitHub -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_use_what_is_here(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert workflow[True], "the events, under `on`, which YAML reads as true"
    [job] = workflow["jobs"].values()
    for step in job["steps"]:
        assert len(step.keys() & {"run", "uses"}) == 1, step
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1")), step
        first, *others = step.get("run", ".ci/run").split()
        if first == "make":
            assert set(others) <= set(targets)
        else:
            assert first == ".venv/bin/unclip" or (ROOT / first).is_file()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == unclip.__version__
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert f"## {unclip.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
