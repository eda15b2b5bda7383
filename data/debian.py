"""Files of Debian packages, fetched without root."""

import subprocess
import sys
from pathlib import Path


def unpack_package(package: str, folder: Path) -> None:
    """Download a package with apt-get and unpack it into a folder. Raises RuntimeError, or OSError without apt-get."""
    print(f"Fetching Debian's package {package} ...", file=sys.stderr)

    def run(*command: str | Path) -> None:
        finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if finished.returncode:
            message = (finished.stderr.strip() or finished.stdout).splitlines()[-1:]
            raise RuntimeError(f"{command[0]} failed: {message}")

    try:
        run("apt-get", "download", package)
    except RuntimeError:  # the package lists may be missing: fetch them into the folder, which needs no root
        (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        options = ("-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder}")
        run("apt-get", *options, "update")
        run("apt-get", *options, "download", package)
    run("dpkg-deb", "-x", next(folder.glob(f"{package}_*.deb")), folder)
