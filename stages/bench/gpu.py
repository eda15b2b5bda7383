"""How busy training keeps a GPU: CLIP and the decoder of preset base at batches of 1,024, and the committed decoder's.

    python -m stages.bench.gpu                      # at most eight minutes
    python -m stages.bench.gpu --minutes 3

Each is timed without CUDA graphs, with them, and with them and compiled blocks, in the trainer's own steps: gradients,
clipping, optimisers and moving average, all on one batch. Beside that stand the images that the batches' threads draw
per second, which bound a training too. Each measurement is a process of its own, so that neither an error nor a slow
compiler spoils the others. Prints a table, and writes it to --out as gpu.md and gpu.json after each line. Not seen on
a GPU.
"""

import contextlib
import copy
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stages import loop
from stages.batches import batches
from stages.bench import our_code, workload
from stages.bench.contender import measure_matrix_rate, synchronize
from stages.bench.own_process import in_own_process
from stages.bench.workload import Inputs
from stages.memory import compile_blocks
from stages.optim import make_optimizers, update_ema
from stages.plan.counting import counting_operations
from stages.plan.machine import DEVICES
from stages.plan.synthetic import make_inputs
from stages.run_options import PartRun, Shapes
from stages.runtime import print0, seeded, start
from stages.state import Progress
from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.devices import Device
from unclip.fields import bounded
from unclip.registry import default_kind, find_kind, resolve
from unclip.store.files import write_atomically
from unclip.store.sealed_json import write_json
from unclip.tensor_batch import TensorBatch

WAYS: dict[str, dict[str, bool]] = {
    "eager": {"cuda_graph": False, "compile": False},
    "graph": {"cuda_graph": True, "compile": False},
    "compiled, graph": {"cuda_graph": True, "compile": True},
}
"""Options of training, the safest first."""
WARM_UP = 5
"""Steps before the first that is timed: they record, compile, and choose kernels."""
ROUND = 5
"""Steps that are timed together, so that the GPU need not be waited for after each."""
TOKENS = 10
"""Tokens of a caption."""


@dataclass(frozen=True)
class GPUOptions:
    minutes: float = bounded(7.5, 0.01, 1000)
    """Time for all measurements. Each gets an equal share of what is left."""
    device: Literal["cuda", "cpu"] = "cuda"
    """The CPU is for trying the program: nothing is recorded there."""
    preset: str = "base"
    """Preset of CLIP and of the first decoder."""
    batch: int = bounded(1024, 2, 65_536)
    """Images per step of these two."""
    out: Path = Path("outputs/bench")
    """Folder for gpu.md and gpu.json."""


@dataclass(frozen=True)
class Work:
    title: str
    part: str
    run: PartRun
    """Options of the training, among them the images per step and the optimiser."""


def make_works(options: GPUOptions) -> list[Work]:
    works = []
    for part in ("clip", "decoder"):
        chosen = preset_run(part, options.preset)
        chosen = replace(chosen, train=replace(chosen.train, batch_size=options.batch))
        works.append(Work(f"{part}, {options.preset}", part, chosen))
    return [*works, Work("the committed decoder's first training", "decoder", committed_decoder())]


def preset_run(part: str, preset: str) -> Any:
    return resolve(find_kind(part, default_kind(part)).presets)[preset]


def committed_decoder() -> PartRun:
    """The recipe that took 310 s on an H100, before steps were recorded: checkpoints/fashion-mnist/README.md."""
    chosen = preset_run("decoder", "small")
    unet = replace(chosen.model.network.unet, width=64)
    network = replace(chosen.model.network, unet=unet)
    train = replace(chosen.train, steps=5179, batch_size=256)
    return replace(chosen, model=replace(chosen.model, network=network), train=train)


def build(work: Work, device: torch.device) -> tuple[nn.Module, nn.Module, TensorBatch]:
    """The model, its objective and a batch of made-up examples as large as Fashion-MNIST's."""
    size = work.run.train.batch_size
    clip = preset_run("clip", work.run.preset).model
    inputs = Inputs(
        workload.Shapes(image_size=28, width=clip.embed_dim, batch=size, decoder_batch=size, tokens=TOKENS), device
    )
    shapes = Shapes(
        vocab_size=inputs.shapes.vocab_size, eos_id=inputs.end_id, embed_dim=clip.embed_dim, text_width=clip.embed_dim
    )
    stage_class = resolve(find_kind(work.part, work.run.kind).stage)
    with seeded(0), device:
        model = stage_class.build_model(work.run, shapes).to(memory_format=torch.channels_last).train()
        if work.part == "clip":
            vision = model.config.vision
            objective = our_code.CLIPObjective(model, our_code.Preprocess(vision.image_size, vision.channels))
            return model, objective, our_code.clip_batch(inputs, distinct=False)
        return model, our_code.DecoderObjective(model), our_code.decoder_batch(inputs, TOKENS)


def count_operations(objective: nn.Module, batch: TensorBatch) -> float:
    """Floating-point operations of a step's forward and backward pass."""
    with counting_operations() as counter, sdpa_kernel(SDPBackend.MATH):  # as fused attention is not counted fully
        objective(batch).backward()
    objective.zero_grad()
    return counter.get_total_flops()


def time_steps(work: Work, way: str, on: Device, seconds: float) -> dict[str, float]:
    """Take the trainer's steps for so many seconds, on one batch. Returns seconds and operations of a step."""
    device = start(on)
    config = replace(work.run.train, **WAYS[way])
    model, objective, batch = build(work, device)
    average = copy.deepcopy(model).requires_grad_(False)
    operations = count_operations(objective, batch)
    optimizers = make_optimizers(model, config.lr, config.weight_decay, config.betas, config.muon_lr)
    if config.compile:
        compile_blocks(model)
    gradients = loop.make_gradients(objective, config, device)
    progress = Progress()

    def take_steps(count: int) -> float:
        """The seconds that each took."""
        synchronize(device)
        began = time.perf_counter()
        for _ in range(count):
            loop.take_step(config, batch, objective, gradients, optimizers, progress)
            update_ema(average, model, progress.step, config.ema)
            progress.step += 1
        synchronize(device)
        return (time.perf_counter() - began) / count

    take_steps(WARM_UP)
    end = time.perf_counter() + seconds
    times = [take_steps(ROUND)]
    while time.perf_counter() < end:
        times.append(take_steps(ROUND))
    return {"seconds": median(times), "operations": operations}


def draw_batches(work: Work, _: str, on: Device, seconds: float) -> dict[str, float]:
    """Draw the decoder's batches for so many seconds, as its trainer's threads do. Returns the images per second."""
    device = start(on)
    clip = preset_run("clip", work.run.preset).model
    inputs = make_inputs(clip, 28, 1, TOKENS)
    stage_class = resolve(find_kind(work.part, work.run.kind).stage)
    stage = stage_class(work.run, stage_class.build_model(work.run, inputs.shapes), inputs, device)
    drawn = 0
    began = time.perf_counter()
    config = replace(work.run.train, steps=10**9)
    with contextlib.closing(batches(stage, config, 0, device)) as to_come:
        while time.perf_counter() < began + seconds:
            drawn += len(next(to_come))
        synchronize(device)
    return {"drawn": drawn / (time.perf_counter() - began)}


def measure(options: GPUOptions) -> str:
    """Measure everything that the time allows, writing both files after each. Returns the table."""
    end = time.monotonic() + 60 * options.minutes
    device = start(options.device)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = data_sheet_rate(device_name)
    matrix_rate = median([measure_matrix_rate(device) for _ in range(5)])
    works = make_works(options)
    tasks = [(work, "drawing batches") for work in works if work.part == "decoder"]
    tasks += [(work, way) for way in WAYS for work in works]
    lines: list[dict[str, Any]] = []
    for place, (work, way) in enumerate(tasks):
        limit = (end - time.monotonic()) / (len(tasks) - place)
        line: dict[str, Any] = {"work": work.title, "way": way, "batch": work.run.train.batch_size}
        function = time_steps if way in WAYS else draw_batches
        try:
            line |= in_own_process(limit, function, work, way, options.device, min(limit / 4, 10))
        except (RuntimeError, TimeoutError) as error:
            line["failed"] = str(error)
        if "seconds" in line:
            rate = line["operations"] / line["seconds"]
            line["share_of_matrix_rate"] = rate / matrix_rate
            line["training_seconds"] = work.run.train.steps * line["seconds"]
            line |= {"share_of_data_sheet": rate / peak} if peak else {}
        lines.append(line)
        table = markdown(lines)
        report = {"device": device_name, "torch": torch.__version__, "matrix_rate": matrix_rate, "rows": lines}
        write_json(options.out / "gpu.json", report)
        write_atomically(options.out / "gpu.md", table)
        print0(table.splitlines()[-1])
    return f"{table}\n{device_name}; a matrix product reaches {matrix_rate / 1e12:.3g} TFLOP/s"


def data_sheet_rate(name: str) -> float | None:
    """Operations per second by the data sheet of the GPU of this name; None for one that the planner does not know."""
    words = re.split(r"[\s-]", name.lower())
    return next((row.peak for key, row in DEVICES.items() if key in words and row.type == "cuda"), None)


def markdown(lines: list[dict[str, Any]]) -> str:
    rows = [
        ("work", "batch", "way", "images/s", "of the data sheet", "of a matrix product", "whole training"),
        ("---",) * 7,
    ]
    for line in lines:
        rate = line.get("drawn") or (line["batch"] / line["seconds"] if "seconds" in line else None)
        rows.append(
            (
                line["work"],
                f"{line['batch']:,}",
                line["way"],
                line.get("failed") or f"{rate:,.0f}",
                f"{line['share_of_data_sheet']:.1%}" if "share_of_data_sheet" in line else "",
                f"{line['share_of_matrix_rate']:.1%}" if "share_of_matrix_rate" in line else "",
                f"{line['training_seconds']:,.0f} s" if "training_seconds" in line else "",
            )
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(GPUOptions, __doc__, argv=argv)
    print(measure(options))


if __name__ == "__main__":
    run(main)
