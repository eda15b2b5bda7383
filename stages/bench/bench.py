"""Time each stage's training step and sampling, ours and other projects', on equal work.

    make bench                         # installs open_clip, diffusers and dalle2-pytorch in an environment of its own
    python -m stages.bench             # those that are installed; the others are named as missing
    python -m stages.bench --quick     # in three minutes on two cores: smaller batches, fewer rounds

Prints a table, and writes it to --out as bench.md and, with every round's seconds, as bench.json. All are timed in
turns in this process, each beside a product of large matrices, so that a busy machine changes ratios and shares little.
glibc is told to keep freed memory, as our trainers tell it: that is the process's, so all profit from it alike.
Operations are counted, not estimated. A training is the whole step: loss, gradients, clipping, AdamW, moving average.
"plain code" is each stage as tutorials write it; see stages/bench/naive.py. On two CPU cores it takes ten minutes.
"""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from stages.bench.contender import Contender, matrix_rate
from stages.bench.table import Row, markdown, quartiles
from stages.bench.workload import Inputs, Shapes
from stages.bench.works import Build, Work, is_missing, works
from stages.runtime import keep_freed_memory, print0, seeded
from unclip.cli.options import parse
from unclip.store.files import write_atomically
from unclip.store.sealed_json import write_json


@dataclass(frozen=True)
class BenchOptions:
    quick: bool = False
    """Smaller batches and three rounds instead of seven."""
    out: Path = Path("outputs/bench")
    """Folder for bench.md and bench.json."""


def bench(out: Path, inputs: Inputs, rounds: int) -> str:
    """Time all there is, write both files, and return the table."""
    lines = []
    for group in works():
        for row in timed(group, inputs, rounds):
            row.check()
            lines += row.figures()
    rates = quartiles([matrix_rate() / 1e9 for _ in range(rounds)])
    told = {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.processor()}
    table = markdown(lines)
    told |= {"gflops_of_a_matrix_product": rates, "shapes": asdict(inputs.shapes)}
    write_json(out / "bench.json", told | {"rows": lines})
    write_atomically(out / "bench.md", table)
    return f"{table}\n{rounds} rounds, {told['threads']} threads, float32; matrix product {rates[1]:.0f} GFLOP/s"


def timed(group: list[Work], inputs: Inputs, rounds: int) -> list[Row]:
    """Build what is installed, and time it in turns. It is let go of before the next group is built."""
    built: dict[Build, Contender] = {}

    def contender(build: Build) -> Contender:
        if build not in built:
            with seeded(0):
                built[build] = build(inputs)
        return built[build]

    sizes = asdict(inputs.shapes) | {"distinct": len(inputs.ids), "longest": inputs.ids.shape[1]}
    rows = [
        Row(
            work.title.format(**sizes),
            contender(work.ours),
            {name: None if is_missing(name) else contender(build) for name, build in work.others.items()},
        )
        for work in group
    ]
    for one in built.values():
        one.prepare()
    for number in range(rounds):
        for one in built.values():
            one.time()
        print0(f"{rows[0].title.split(',')[0]}: round {number + 1} of {rounds}")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(BenchOptions, __doc__, argv=argv)
    keep_freed_memory()
    shapes = replace(Shapes(), batch=32, decoder_batch=8, samples=4) if options.quick else Shapes()
    print(bench(options.out, Inputs(shapes), rounds=3 if options.quick else 7))
