"""Time each stage's training step and sampling, in our code and in other projects', on equal work.

    make bench                         # installs open_clip, diffusers and dalle2-pytorch in an environment of its own
    python -m stages.bench             # times those that are installed; names the others as missing
    python -m stages.bench --quick     # smaller batches and fewer rounds: three minutes on two cores
    python -m stages.bench --device cuda

Prints a table, and writes it to --out as bench.md and, with every round's seconds, as bench.json. All contenders are
timed in turns in this process, each beside a product of large matrices, so a busy machine changes ratios and shares
little. glibc is told to keep freed memory, as our trainers tell it: this holds for the process, so all profit alike.
Operations are counted, not estimated. A training step is whole: loss, gradients, clipping, AdamW and moving average.
"plain code" is each stage as tutorials write it; see stages/bench/plain_code.py. On two CPU cores it takes ten minutes.
"""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from stages.bench.comparisons import Builder, Comparison, is_missing, make_comparisons
from stages.bench.contender import Contender, measure_matrix_rate
from stages.bench.table import Row, markdown, quartiles
from stages.bench.workload import Inputs, Shapes
from stages.runtime import print0, seeded, start
from unclip.cli.options import parse
from unclip.store.files import write_atomically
from unclip.store.sealed_json import write_json


@dataclass(frozen=True)
class BenchOptions:
    quick: bool = False
    """Smaller batches, and three rounds instead of seven."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute: on a GPU trainings do so in bfloat16 autocast."""
    out: Path = Path("outputs/bench")
    """Folder for bench.md and bench.json."""


def run_bench(out: Path, inputs: Inputs, rounds: int) -> str:
    """Time all contenders that are installed, write both files, and return the table."""
    lines = []
    for group in make_comparisons():
        for row in time_group(group, inputs, rounds):
            row.check_fairness()
            lines += row.figures()
    matrix_rates = quartiles([measure_matrix_rate(inputs.device) / 1e9 for _ in range(rounds)])
    threads = torch.get_num_threads()
    report = {
        "threads": threads,
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if inputs.device.type == "cuda" else platform.processor(),
        "gflops_of_a_matrix_product": matrix_rates,
        "shapes": asdict(inputs.shapes),
        "rows": lines,
    }
    table = markdown(lines)
    write_json(out / "bench.json", report)
    write_atomically(out / "bench.md", table)
    precision = "bfloat16 autocast" if inputs.device.type == "cuda" else "float32"
    return f"{table}\n{rounds} rounds, {threads} threads, {precision}; matrix product {matrix_rates[1]:.0f} GFLOP/s"


def time_group(group: list[Comparison], inputs: Inputs, rounds: int) -> list[Row]:
    """Build the contenders of a group that are installed, and time them in turns.

    They are freed before the next group is built.
    """
    contenders: dict[Builder, Contender] = {}

    def get_contender(builder: Builder) -> Contender:
        if builder not in contenders:
            with seeded(0), inputs.device:  # builders make tensors on it
                contenders[builder] = builder(inputs)
        return contenders[builder]

    distinct, longest = inputs.token_ids.shape
    sizes = asdict(inputs.shapes) | {"distinct": distinct, "longest": longest}
    rows = []
    for comparison in group:
        ours = get_contender(comparison.our_builder)
        others = {
            name: None if is_missing(name) else get_contender(builder)
            for name, builder in comparison.other_builders.items()
        }
        rows.append(Row(comparison.title.format(**sizes), ours, others))
    for contender in contenders.values():
        contender.warm_up()
    for number in range(1, rounds + 1):
        for contender in contenders.values():
            contender.time_round()
        print0(f"{rows[0].title.split(',')[0]}: round {number} of {rounds}")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(BenchOptions, __doc__, argv=argv)
    device = start(options.device)
    shapes = replace(Shapes(), batch=32, decoder_batch=8, samples=4) if options.quick else Shapes()
    print(run_bench(options.out, Inputs(shapes, device), rounds=3 if options.quick else 7))
