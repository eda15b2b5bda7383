"""Files of Debian packages, without root."""

import subprocess
import sys
from pathlib import Path


def unpack(package: str, folder: Path) -> None:
    """Download a package with apt-get and unpack it into a folder. Raises RuntimeError, or OSError without apt-get."""
    print(f"Fetching Debian's package {package} ...", file=sys.stderr)

    def run(*command: str | Path) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {(done.stderr.strip() or done.stdout).splitlines()[-1:]}")

    try:
        run("apt-get", "download", package)
    except RuntimeError:  # the package lists may be missing: fetch them to a place of our own, which needs no root
        (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        own = ("-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder}")
        run("apt-get", *own, "update")
        run("apt-get", *own, "download", package)
    run("dpkg-deb", "-x", next(folder.glob(f"{package}_*.deb")), folder)
