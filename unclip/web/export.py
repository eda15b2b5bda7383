"""Write pipelines as a static site: the page's files, the exported networks, and ONNX Runtime Web."""

import gzip
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.lite.description import DESCRIPTION
from unclip.onnx.export import export_onnx
from unclip.store.checksums import file_sha256
from unclip.store.hub import find_pipeline
from unclip.store.sealed_json import read_json, read_record, write_json
from unclip.store.training_captions import read_training_captions

PAGE = Path(__file__).parent / "site"
INDEX = "site.json"
"""The file that lists a site's pipelines, and the size and SHA-256 of each file that is fetched."""
RUNTIME = "onnxruntime-web@1.30.0"
"""The npm package of the runtime."""
SCRIPT = "ort.wasm.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.wasm"
"""Its build for WebAssembly alone."""
EXAMPLES = 6


def export_web(sources: Sequence[Path], out: Path, runtime: Path | None = None) -> Path:
    """Write a static site into a folder. Returns the page.

    Args:
        sources: folders of pipelines, or their names on the Hub; the page switches between them.
        out: folder to write; it must be empty, or not exist.
        runtime: folder with the files of ONNX Runtime Web (`dist` of its package); without it npm fetches them.

    Raises UserError for a folder that is not empty, for pipelines of one name, and where the runtime cannot be had.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name another folder with --out")
    folders = {source.resolve().name: find_pipeline(source) for source in sources}
    if len(folders) < len(sources):
        raise UserError("two of the pipelines have folders of one name; rename one, as the page shows these names")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        work = Path(temporary) / "site"
        make_site(work, runtime)
        for name, folder in folders.items():
            exported = Path(temporary) / "exported" / name
            export_onnx(folder, exported)
            add_pipeline(work, name, exported, examples(folder))
        if out.exists():
            out.rmdir()
        work.rename(out)
    return out / "index.html"


def make_site(out: Path, runtime: Path | None = None) -> None:
    """Write the page and its runtime, to which only the pipelines are missing."""
    (out / "runtime").mkdir(parents=True)
    for path in PAGE.iterdir():
        if path.is_file():
            (out / path.name).write_bytes(path.read_bytes())
    with tempfile.TemporaryDirectory() as temporary:
        if runtime is None:
            unpack_npm(RUNTIME, [f"dist/{SCRIPT}", f"dist/{WASM}"], Path(temporary))
        folder = runtime or Path(temporary)
        for name in (SCRIPT, WASM):
            if not (folder / name).is_file():
                raise UserError(f"{folder} holds no {name}; name the folder dist of the package {RUNTIME}")
        (out / "runtime" / SCRIPT).write_bytes((folder / SCRIPT).read_bytes())
        wasm = compress(folder / WASM, out / "runtime")
    page = sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.suffix != ".gz" and path.is_file()
    )
    write_json(out / INDEX, {"page": page, "runtime": listed(out, wasm), "pipelines": []})


def add_pipeline(site: Path, name: str, exported: Path, captions: Sequence[str]) -> None:
    """Add an exported pipeline to a site, with captions as examples.

    Where a fast decoder draws, the decoder itself stays out: it would take as long to load as all the rest.
    """
    description = read_record(exported / DESCRIPTION)
    draws_fast = "fast_decoder" in description and description["sampling"]["fast_decoder"]["steps"] > 0
    folder = site / "pipelines" / name
    folder.mkdir(parents=True)
    files = {}
    for path in sorted(exported.iterdir()):
        if not (draws_fast and path.name.startswith("decoder")):
            compressed = compress(path, folder)
            files[compressed.name] = listed(site, compressed)
    index: dict[str, Any] = read_json(site / INDEX)
    index["pipelines"].append({"name": name, "examples": list(captions), "files": files})
    write_json(site / INDEX, index)


def compress(path: Path, folder: Path) -> Path:
    """Write a file into a folder, compressed by gzip: the same bytes at every time."""
    compressed = folder / f"{path.name}.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return compressed


def listed(site: Path, path: Path) -> dict[str, Any]:
    return {"path": path.relative_to(site).as_posix(), "size": path.stat().st_size, "sha256": file_sha256(path)}


def unpack_npm(package: str, files: Sequence[str], target: Path) -> None:
    """Let npm fetch a package, which checks its hash, and write some of its files into a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        command = ["npm", "pack", package, "--silent", "--pack-destination", temporary]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError(f"npm is not installed; install Node.js, or give --runtime: dist of {package}") from error
        except subprocess.CalledProcessError as error:
            line = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"npm could not fetch {package} ({line}); give --runtime, its folder dist") from error
        [archive_path] = Path(temporary).glob("*.tgz")
        with tarfile.open(archive_path) as archive:
            for name in files:
                member = archive.extractfile(f"package/{name}")
                assert member is not None
                (target / Path(name).name).write_bytes(member.read())


def examples(folder: Path) -> list[str]:
    """A few captions, spread over those of the training."""
    captions = read_training_captions(folder)
    return captions[:: max(1, len(captions) // EXAMPLES)][:EXAMPLES]
