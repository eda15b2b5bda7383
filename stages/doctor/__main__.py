"""Say for each part of a pipeline whether it is healthy, and if not, what is wrong and what to do.

    python -m stages.doctor checkpoints/run       # or: unclip doctor checkpoints/run, in a checkout

Reads manifests and logs, looks at the data, and draws a few samples: some seconds for small pipelines. A part is
healthy, undertrained, collapsed, leaking, diverged or mismatched. The exit status is 1 unless all are healthy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.store.hub import find_pipeline
from unclip.store.index import newest_pipeline


@dataclass(frozen=True)
class DoctorOptions:
    pipeline: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a pipeline, complete or not (default: the newest complete one under checkpoints/)."""


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(DoctorOptions, __doc__, argv=argv)
    from stages.doctor.examination import describe

    lines = list(describe(find_pipeline(options.pipeline or newest_pipeline(Path("checkpoints")))))
    print("\n".join(lines))
    return int(any(line.startswith("  not so") for line in lines))


if __name__ == "__main__":
    run(main)
