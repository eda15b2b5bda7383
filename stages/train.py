"""Train one part of a pipeline, of any kind.

    python -m stages.train prior                       # the same as python train_prior.py
    python -m stages.train prior --kind diffusion --help

A kind is a row of the table in unclip/registry.py, which names its model, its presets and its training stage.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import nn

from stages import loop, runtime
from stages.data_config import inherit_data
from stages.doctor.examination import after_training
from stages.identity import settings
from stages.inputs import open_clip_inputs, open_inputs
from stages.memory import check_fits
from stages.run_options import PartRun, Shapes
from stages.state import start_from
from unclip.cli.options import command_line, parse_run, read_early_options
from unclip.cli.run import run
from unclip.errors import UserError
from unclip.registry import PARTS, default_kind, find_kind, resolve
from unclip.store.hub import find_pipeline
from unclip.store.index import check_free
from unclip.store.manifest import Manifest, read_manifest


class PartStage(loop.Stage, Protocol):
    """The training stage of one kind: what the loop needs, and how it is put together from options and inputs."""

    def __init__(self, run: Any, model: nn.Module, inputs: Any, device: torch.device):
        """Take the options, a new model, and `stages.inputs.CLIPInputs` (CLIP) or `Inputs` (all other parts)."""

    @staticmethod
    def build_model(run: Any, shapes: Shapes) -> nn.Module:
        """A new model by the run's options, completed by sizes that only the data and the frozen CLIP know."""

    def fit_buffers(self) -> None:
        """Fit the model's buffers, such as statistics of the embeddings, to the training data."""


def train_from_command_line(part: str, description: str, argv: Sequence[str] | None = None) -> None:
    """Train a part by the options of the command line, and print its validation figures."""
    named = read_early_options(argv)
    presets = resolve(find_kind(part, named.kind or default_kind(part)).presets)
    run = parse_run(inherit_data(part, presets, named), description, argv)
    manifest = train_part(part, run)
    if runtime.is_main():
        figures = ", ".join(f"{name} {value:.4g}" for name, value in manifest.figures.items())
        print(f"{part} in {run.out / part}: {figures}")
        print(after_training(run.out, part))


def train_part(part: str, run: PartRun) -> Manifest:
    """Train a part into run.out. Returns the manifest of the trained part.

    Raises UserError for files of others in the places of the part's own, for inputs that are missing, and for a model
    that does not fit into memory.
    """
    device = runtime.start(run.train.device)
    if runtime.is_main():
        check_free(run.out, part, ["tokenizer.json" if part == "clip" else "captions.txt"])
    run = run.for_pipeline()
    stage_class = resolve(find_kind(part, run.kind).stage)
    check_fits(lambda: stage_class.build_model(run, Shapes()), device, shared=run.train.shard)
    if part == "clip":
        inputs: Any = open_clip_inputs(run, run.vocab_size)
    else:
        inputs = open_inputs(run, device, needs_decoder="decoder" in PARTS[part].parents)
    with runtime.seeded(run.train.seed):
        model = stage_class.build_model(run, inputs.shapes)
    if hasattr(run, "sampling"):
        run.sampling.check_read_by(model, part)
    stage = stage_class(run, model, inputs, device)
    stage.fit_buffers()
    start = start_from_pipeline(part, run, stage, inputs)
    manifest = Manifest(
        part,
        run.kind,
        parents=inputs.parents | start,
        data={"name": inputs.data.name, "fingerprint": inputs.data.fingerprint, "example": inputs.data.example},
        provenance=inputs.provenance,
        training=settings(run),
        sampling=asdict(run.sampling) if hasattr(run, "sampling") else {},
    )
    return loop.train(stage, run.train, device, run.out, manifest, inputs.files, inputs.stream)


def start_from_pipeline(part: str, run: PartRun, stage: PartStage, inputs: Any) -> dict[str, str]:
    """Take the weights of run.init_from, for fine-tuning. Returns the parent to name in the manifest.

    The statistics of the embeddings come from the parent, as its weights were trained with them; the model's
    `data_buffers` are this run's own. If the parent was trained on another CLIP, all are.
    """
    if run.init_from is None:
        return {}
    folder = find_pipeline(run.init_from)
    fitted = {name: buffer.clone() for name, buffer in stage.model.named_buffers()}
    start = start_from(stage.model, folder, part)
    if part != "clip" and read_manifest(folder / part).parents.get("clip") != inputs.parents["clip"]:
        runtime.print0(f"{part}: {run.init_from} has another CLIP; the statistics of the embeddings are this run's own")
        stage.model.load_state_dict(fitted, strict=False)
    return start


def main(argv: Sequence[str] | None = None) -> None:
    """Train the part that the first argument names."""
    options = command_line(argv)
    part = options.pop(0) if options else ""
    usage = f"python -m stages.train {'|'.join(PARTS)} [options]"
    if part in ("-h", "--help"):
        print(f"{__doc__}\n{usage}")
        return
    if part not in PARTS:
        raise UserError(f"name the part to train: {usage}, not {part!r}")
    train_from_command_line(part, __doc__, options)


if __name__ == "__main__":
    run(main)
