"""Runs the sections one after the other, and writes the report."""

import json
import platform
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from data.dataset import CaptionedImages
from data.provenance import compare_source
from stages.data_config import DataConfig
from stages.embed import embed_images
from stages.evaluation.attributes import has_attributes, held_out_section
from stages.evaluation.drawing import TrueEmbeddings, denoising_section, sweep_section
from stages.evaluation.embeddings import clip_section, prior_section
from stages.evaluation.error_budget import error_budget, stage_losses
from stages.evaluation.judge import trained_judge
from stages.evaluation.reference import Reference, Section, memorisation_section, reference_section
from stages.evaluation.report import markdown
from stages.loop import TrainConfig
from unclip import UnCLIP
from unclip.devices import pick_device
from unclip.errors import UserError
from unclip.fields import bounded
from unclip.images import save_png
from unclip.settings import Device, SamplingOptions, check_seeds
from unclip.store.array_files import write_npz
from unclip.store.files import write_atomically
from unclip.store.hub import find_pipeline
from unclip.store.manifest import read_manifests
from unclip.store.sealed_json import write_json

ROOT = Path(__file__).resolve().parents[2]
JUDGE = TrainConfig(
    steps=4800, batch_size=64, lr=3e-3, muon_lr=5e-3, warmup=450, ema=0.998, evaluate_every=1200, preview_every=4800
)


@dataclass(frozen=True)
class EvaluateOptions:
    checkpoint: Path = ROOT / "checkpoints" / "fashion-mnist"
    """Folder of a trained pipeline, or its name OWNER/NAME on the Hugging Face Hub."""
    samples: int = bounded(1000, 20, 10**6)
    """Images drawn for each figure; 10000 for exact ones."""
    seed: int = bounded(0, 0, 2**62)
    """Sample i of each figure uses seed + i."""
    sweep: int = bounded(0, 0, 10**6)
    """Images drawn for each setting of the sweep over guidance, steps and samplers; 0 for no sweep."""
    out: Path | None = None
    """Folder for the report (default: outputs/evaluation/NAME)."""
    device: Device = "auto"
    """Where to draw: auto takes a GPU if there is one."""
    split: Literal["test", "validation"] = "test"
    """Whose images the samples are compared with; what is chosen on validation leaves the test images unseen."""
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """How to draw (default: as the pipeline says)."""
    judge: TrainConfig = JUDGE
    """How the judge of the samples is trained."""

    def __post_init__(self):
        if self.sweep and self.sweep < 20:
            raise UserError(f"--sweep must be 0 or at least 20, not {self.sweep}")
        check_seeds(self.seed, self.samples)


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Measure a pipeline and write the report. Returns what evaluation.json holds.

    Raises UserError if the pipeline is missing, damaged or unfinished.
    """
    device = pick_device(options.device)
    folder = find_pipeline(options.checkpoint)
    manifests = read_manifests(folder)
    pipe = UnCLIP.from_pretrained(folder, device)
    pipe.sampling = pipe.sampling.override(**options.sampling.changed(pipe.sampling))
    compare_source(folder, options.data)
    test, _, train = real = real_images(options)
    sections, seconds = measure(pipe, manifests["clip"].sha256, real, options)
    figures = {name: section.figures for name, section in sections.items() if section.figures}
    shown = options.data.load("train")[0] if has_attributes(train) else train  # of fashion-mnist a part is held out
    report = {
        "checkpoint": options.checkpoint.resolve().name,  # a report is handed on: no path of the machine
        "stages": {stage: {"sha256": m.sha256, "step": m.step} for stage, m in manifests.items()},
        "data": {"name": test.name, "fingerprint": test.fingerprint},
        "same_training_data": all(m.data.get("fingerprint") == shown.fingerprint for m in manifests.values()),
        "judge": "classifier" if train.classes else "matcher",
        "samples": figures["error_budget"]["prior"]["n"],
        "seed": options.seed,
        "sampling": asdict(options.sampling),
        "hardware": f"{device}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
        **figures,
        "lost": stage_losses(figures["error_budget"], figures["reference"]["floor"]["frechet"]),
        "seconds": seconds,
    }
    write(report, sections.values(), options.out or Path("outputs") / "evaluation" / report["checkpoint"])
    return report


def measure(
    pipe: UnCLIP, clip_sha256: str, real: Sequence[CaptionedImages], options: EvaluateOptions
) -> tuple[dict[str, Section], dict[str, float]]:
    """All sections on what `real_images` gives, and how many seconds each took."""
    test, validation, train = real
    sections, seconds = {}, {}

    def timed(name: str, work: Callable[..., Any], *needs: Any) -> Any:
        began = time.perf_counter()
        done = work(*needs)
        seconds[name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
        return done

    kind = "classifier" if train.classes else "matcher"
    judge = timed(kind, trained_judge, train, validation, options.judge, pipe.device)
    if not train.classes:
        judge.choose_among(test.class_captions)
        validation = test  # no other images are of the same captions
    parts = (pipe.clip, clip_sha256, pipe.tokenizer, pipe.preprocess, pipe.device)
    embedded, embedded_validation = timed(
        "embedding the test and validation images", lambda: [embed_images(data, *parts) for data in (test, validation)]
    )
    reference, true = Reference.of(judge, test), TrueEmbeddings(validation, embedded_validation.embeddings)
    seed, n = options.seed, options.samples // reference.classes
    sections["reference"] = timed("reference", reference_section, reference, train, n, seed)
    sections["clip"] = timed("clip", clip_section, pipe, embedded, seed)
    sections["prior"] = timed("prior", prior_section, pipe, embedded, n * reference.classes, seed)
    sections["error_budget"] = budget = timed("error budget", error_budget, pipe, reference, true, n, seed)
    if has_attributes(test):
        per_pair = max(2, n * reference.classes // 20)
        sections["held_out"] = timed("held out", held_out_section, pipe, reference, per_pair, seed)
    samples = budget.arrays["prior: images"]
    sections["memorisation"] = timed("memorisation", memorisation_section, samples, train, reference, seed)
    sections["denoising"] = timed("denoising", denoising_section, pipe, test.class_captions[:3], seed)
    if options.sweep:
        sections["sweep"] = timed("sweep", sweep_section, pipe, judge, validation, options.sweep, seed)
    return sections, seconds


def real_images(options: EvaluateOptions) -> Sequence[CaptionedImages]:
    """The images to compare with, the validation images, and all training images.

    Where a split has no images of some class, the first two have each caption as a class, and the training images none.
    Raises UserError if there are fewer than two samples per class.
    """
    splits = test, validation, train = options.data.load(options.split, "validation", "train", held_out=True)
    if not all(data.classes and len(data.labels.unique()) == len(data.classes) for data in splits):
        splits = [test.captions_as_classes(), validation.captions_as_classes(), replace(train, classes=())]
    if options.samples < (fewest := 2 * len(splits[0].classes)):
        raise UserError(f"--samples must be at least {fewest}: two for each caption of {test.name}")
    return splits


def write(report: dict[str, Any], sections: Collection[Section], out: Path) -> None:
    """Write the report with its pictures and arrays into a folder, and print it."""
    pictures = {name: picture for section in sections for name, picture in section.pictures.items()}
    for name, picture in pictures.items():
        save_png(out / f"{name}.png", picture)
    write_npz(out / "evaluation.npz", {k: array for section in sections for k, array in section.arrays.items()})
    write_json(out / "evaluation.json", without_nan(report))
    text = markdown(report, list(pictures))
    write_atomically(out / "evaluation.md", text)
    print(f"\n{text}\nwith its pictures in {out / 'evaluation.md'}")


def without_nan(tree: Any) -> Any:
    """The same with None for NaN, which JSON has no word for."""
    return json.loads(json.dumps(tree), parse_constant=lambda word: None)
