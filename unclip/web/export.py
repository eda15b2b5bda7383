"""Write a pipeline as a static site: the page's files, the exported networks, and ONNX Runtime Web."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.lite.description import DESCRIPTION
from unclip.onnx.export import export_onnx
from unclip.store.hub import find_pipeline
from unclip.store.sealed_json import read_record, write_record
from unclip.store.training_captions import read_training_captions

SITE = Path(__file__).parent / "site"
RUNTIME = "onnxruntime-web@1.30.0"
"""The npm package of the runtime."""
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Its build for WebAssembly alone."""
EXAMPLES = 6


def export_web(source: Path, out: Path, runtime: Path | None = None) -> Path:
    """Write a static site into a folder. Returns the page.

    Args:
        source: folder of a pipeline, or its name on the Hub.
        out: folder to write; it must be empty, or not exist.
        runtime: folder with the files of ONNX Runtime Web (`dist` of its package); without it npm fetches them.

    Raises UserError for a folder that is not empty, and where the runtime cannot be had.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name another folder with --out")
    folder = find_pipeline(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        work = Path(temporary) / "site"
        make_site(work, runtime)
        export_onnx(source, work / "model")
        add_for_page(work / "model", examples(folder))
        if out.exists():
            out.rmdir()
        work.rename(out)
    return out / "index.html"


def make_site(out: Path, runtime: Path | None = None) -> None:
    """Write the page and its runtime, to which only the folder of the model is missing."""
    shutil.copytree(SITE, out)
    copy_runtime(runtime, out / "runtime")


def copy_runtime(source: Path | None, target: Path) -> None:
    """Copy the runtime's files from a folder, or fetch them by npm."""
    target.mkdir()
    if source is None:
        fetch_runtime(target)
    for name in RUNTIME_FILES:
        if source is not None:
            if not (source / name).is_file():
                raise UserError(f"{source} holds no {name}; name the folder dist of the package {RUNTIME}")
            shutil.copy(source / name, target / name)


def fetch_runtime(target: Path) -> None:
    """Let npm fetch the package, which checks its hash, and unpack the files that are needed."""
    with tempfile.TemporaryDirectory() as temporary:
        command = ["npm", "pack", RUNTIME, "--silent", "--pack-destination", temporary]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError(f"npm is not installed; install Node.js, or give --runtime: dist of {RUNTIME}") from error
        except subprocess.CalledProcessError as error:
            line = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"npm could not fetch {RUNTIME} ({line}); give --runtime, its folder dist") from error
        [package] = Path(temporary).glob("*.tgz")
        with tarfile.open(package) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                (target / name).write_bytes(member.read())


def examples(folder: Path) -> list[str]:
    """A few captions, spread over those of the training."""
    captions = read_training_captions(folder)
    return captions[:: max(1, len(captions) // EXAMPLES)][:EXAMPLES]


def add_for_page(model: Path, captions: list[str]) -> None:
    """Tell the page which captions to show, and how many bytes it will load."""
    description: dict[str, Any] = read_record(model / DESCRIPTION)
    description["examples"] = captions
    description["sizes"] = {name: (model / name).stat().st_size for name in description["files"]}
    write_record(model / DESCRIPTION, description)
