"""Write the project of the light distribution, `unclip-lite`: the runtime without PyTorch and what it imports.

    python -m unclip.lite.distribution outputs/unclip-lite
    pip wheel --no-deps outputs/unclip-lite

The modules become the package `unclip_lite`. It shares no file with the distribution `unclip`, so that either can be
installed, updated and removed beside the other.
"""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import unclip
from unclip.cli.run import run
from unclip.errors import UserError
from unclip.store.files import write_atomically

PACKAGE = Path(unclip.__file__).parent
IMPORT = re.compile(r"\b(from|import) unclip\b")
INIT = '''"""The runtime of unCLIP without PyTorch: see `unclip_lite.lite`."""

from unclip_lite.lite import Lite

__all__ = ["Lite"]
__version__ = "{version}"
'''
PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "unclip-lite"
version = "{version}"
description = "Draw images from captions by an exported unCLIP pipeline, with NumPy and ONNX Runtime, without PyTorch."
readme = "README.md"
license = "MIT"
authors = [{{ name = "The unclip authors" }}]
keywords = ["unCLIP", "DALL-E 2", "text-to-image", "ONNX"]
classifiers = [
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
]
requires-python = ">=3.11"
dependencies = ["numpy", "onnxruntime", "tokenizers", "pillow>=10.1"]

[tool.setuptools]
packages = {packages}
package-data = {{ unclip_lite = ["py.typed"] }}
"""


def write_project(out: Path) -> None:
    """Write pyproject.toml, README.md and the package into a folder, which must be new or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name another folder")
    files = {}
    for path in needed_files():
        name = path.relative_to(PACKAGE).as_posix()
        files[f"unclip_lite/{name}"] = IMPORT.sub(r"\1 unclip_lite", path.read_text(encoding="utf-8"))
    files["unclip_lite/__init__.py"] = INIT.format(version=unclip.__version__)
    files["unclip_lite/py.typed"] = ""
    packages = sorted({".".join(Path(name).parts[:-1]) for name in files})
    files["pyproject.toml"] = PYPROJECT.format(version=unclip.__version__, packages=str(packages).replace("'", '"'))
    files["README.md"] = (PACKAGE / "lite" / "README.md").read_text(encoding="utf-8")
    for name, text in files.items():
        write_atomically(out / name, text)


def needed_files() -> set[Path]:
    """The files that the runtime imports, directly or not, and those of the packages around them."""
    modules: set[str] = set()
    waiting = {"unclip.lite"}
    while waiting:
        module = waiting.pop()
        modules.add(module)
        waiting |= imported_modules(module_file(module)) - modules
    return {module_file(module) for module in modules}


def imported_modules(path: Path) -> set[str]:
    """The modules of `unclip` that a file names in its imports, and the packages around them, without `unclip`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    around = {name.rsplit(".", level)[0] for name in names for level in range(name.count("."))}
    return {name for name in around if name.startswith("unclip.") and module_file(name).is_file()}


def module_file(module: str) -> Path:
    """The file of a module of `unclip`; a path that is no file for the name of anything else."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def main(argv: Sequence[str] | None = None) -> None:
    from unclip.cli.options import command_line

    arguments = command_line(argv)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("name the folder to write: python -m unclip.lite.distribution DIR")
    write_project(Path(arguments[0]))
    print(f"wrote {arguments[0]}; build it with: pip wheel --no-deps {arguments[0]}")


if __name__ == "__main__":
    run(main)
