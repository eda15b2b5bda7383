"""Run all evaluators on a pipeline, one after the other, and write the report."""

import json
import math
import platform
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from data.dataset import CaptionedImages
from data.provenance import compare_source
from stages.data_config import DataConfig
from stages.embed import embed_images
from stages.evaluation.attributes import has_attributes, measure_held_out
from stages.evaluation.clip_figures import measure_clip
from stages.evaluation.denoising import draw_denoising
from stages.evaluation.error_budget import measure_error_budget, stage_losses
from stages.evaluation.few_calls import measure_few_calls
from stages.evaluation.judge import Matcher
from stages.evaluation.judge_training import trained_judge
from stages.evaluation.memorisation import measure_memorisation
from stages.evaluation.prior_evaluation import measure_prior
from stages.evaluation.real_images import measure_real_images
from stages.evaluation.reference import Reference
from stages.evaluation.report import markdown
from stages.evaluation.section import EvaluationContext, Evaluator, LargeImages, Section
from stages.evaluation.standard_networks import check_inception, measure_with_standard_networks
from stages.evaluation.sweep import sweep_settings
from stages.evaluation.upsampling import measure_upsampling
from stages.loop import TrainConfig
from unclip import UnCLIP
from unclip.decoder import DiffusionDecoder
from unclip.devices import pick_device
from unclip.errors import UserError, quantity
from unclip.fields import bounded
from unclip.images import save_png
from unclip.settings import Device, SamplingOptions, check_seeds
from unclip.store.array_files import write_npz
from unclip.store.files import write_atomically
from unclip.store.hub import find_pipeline
from unclip.store.manifest import read_manifests
from unclip.store.sealed_json import write_json
from unclip.upsampler import DiffusionUpsampler

ROOT = Path(__file__).resolve().parents[2]
JUDGE = TrainConfig(
    steps=4800, batch_size=64, lr=3e-3, muon_lr=5e-3, warmup=450, ema=0.998, evaluate_every=1200, preview_every=4800
)
JUDGE_EPOCHS = 250
"""The most epochs of a judge: after these it learns no more from the images."""
EVALUATORS = {
    "reference": Evaluator(measure_real_images),
    "clip": Evaluator(measure_clip),
    "prior": Evaluator(measure_prior),
    "error_budget": Evaluator(measure_error_budget),
    "held_out": Evaluator(
        measure_held_out, "the images of Fashion-MNIST", lambda pipe, test, options: has_attributes(test)
    ),
    "memorisation": Evaluator(measure_memorisation),
    "denoising": Evaluator(
        draw_denoising,
        "a decoder that denoises in steps",
        lambda pipe, test, options: isinstance(pipe.decoder, DiffusionDecoder),
    ),
    "standard_networks": Evaluator(
        measure_with_standard_networks,
        "--inception or --clip-score",
        lambda pipe, test, options: bool(options.inception or options.clip_score),
    ),
    "few_calls": Evaluator(
        measure_few_calls, "a fast decoder", lambda pipe, test, options: pipe.fast_decoder is not None
    ),
    "upsampling": Evaluator(
        measure_upsampling, "an upsampler", lambda pipe, test, options: find_upsampler(pipe) is not None
    ),
    "sweep": Evaluator(sweep_settings, "--sweep", lambda pipe, test, options: options.sweep > 0),
}
"""All evaluators, in the order in which they run. evaluation.json holds their figures under these names."""
ALWAYS = "reference"
"""It always runs: reports compare with its floors."""
ASKED_BY = {"sweep": "sweep", "inception": "standard_networks", "clip_score": "standard_networks"}
"""Options that one evaluator alone reads."""


@dataclass(frozen=True)
class EvaluateOptions:
    checkpoint: Path = ROOT / "checkpoints" / "fashion-mnist"
    """Folder of a trained pipeline, or its name OWNER/NAME on the Hugging Face Hub."""
    samples: int = bounded(1000, 20, 10**6)
    """Images drawn for each figure; 10000 for exact ones."""
    seed: int = bounded(0, 0, 2**62)
    """Sample i of each figure uses seed + i."""
    only: tuple[str, ...] = ()
    """Names of the evaluators to run (default: all that can), such as error_budget or few_calls."""
    sweep: int = bounded(0, 0, 10**6)
    """Images drawn for each setting of the sweep over guidance, steps and samplers; 0 for no sweep."""
    out: Path | None = None
    """Folder for the report (default: outputs/evaluation/NAME; with --only, the evaluators' names follow)."""
    device: Device = "auto"
    """Where to draw: auto takes a GPU if there is one."""
    split: Literal["test", "validation"] = "test"
    """The images that samples are compared with. Choose settings on validation, so that the test images stay unseen."""
    inception: Path | None = None
    """File of the standard Inception weights, for FID, KID, precision and recall by torch-fidelity."""
    clip_score: Path | None = None
    """A pretrained CLIP, of open_clip or Hugging Face, for the CLIP score and a Frechet distance on its features."""
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """How to sample (default: the pipeline's own settings)."""
    judge: TrainConfig = JUDGE
    """How the judge of the samples is trained."""

    def __post_init__(self):
        if self.sweep and self.sweep < 20:
            raise UserError(f"--sweep must be 0 or at least 20, not {self.sweep}")
        for name in self.only:
            if name not in EVALUATORS:
                raise UserError(f"--only {name}: no such evaluator; there are {', '.join(EVALUATORS)}")
        for option, name in ASKED_BY.items():
            if self.only and getattr(self, option) and name not in self.only:
                raise UserError(f"--{option.replace('_', '-')} is read by {name} alone; add {name} to --only")
        check_seeds(self.seed, self.samples)


@dataclass(frozen=True)
class RealImages:
    """The splits of a data set that an evaluation reads."""

    test: CaptionedImages
    """The images that samples are compared with."""
    validation: CaptionedImages
    train: CaptionedImages
    """All training images. They have classes only if a classifier can judge."""


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Measure a pipeline and write the report. Return the contents of evaluation.json.

    Raises UserError if the pipeline is missing, damaged or unfinished, or lacks what an evaluator needs that is named.
    """
    device = pick_device(options.device)
    if options.inception:
        check_inception(options.inception)
    folder = find_pipeline(options.checkpoint)
    manifests = read_manifests(folder)
    pipe = UnCLIP.from_pretrained(folder, device)
    settings = options.sampling.changed(pipe.sampling)
    if "upsampler" in pipe.parts:  # it has figures of its own: all others are taken of the decoder's images
        settings["upscale"] = "none"
    pipe.sampling = pipe.sampling.for_drawing(**settings)
    compare_source(folder, options.data)
    real = load_real_images(options)
    names, left_out = choose_evaluators(pipe, real.test, options)
    seconds: dict[str, float] = {}
    context = prepare_context(pipe, manifests["clip"].sha256, real, options, seconds)
    sections = run_evaluators(context, names, seconds)
    figures = {name: section.figures for name, section in sections.items() if section.figures}
    # Training leaves out fashion-mnist's images of held-out pairs.
    trained_on = options.data.load("train")[0] if has_attributes(real.train) else real.train
    threads = quantity(torch.get_num_threads(), "thread")
    report = {
        "checkpoint": options.checkpoint.resolve().name,  # a report is published: it names no path of this machine
        "stages": {stage: {"sha256": manifest.sha256, "step": manifest.step} for stage, manifest in manifests.items()},
        "data": {"name": real.test.name, "fingerprint": real.test.fingerprint},
        "same_training_data": all(
            manifest.data.get("fingerprint") == trained_on.fingerprint for manifest in manifests.values()
        ),
        "judge": "classifier" if real.train.classes else "matcher",
        "samples": context.sample_count,
        "seed": options.seed,
        "sampling": asdict(options.sampling),
        "hardware": f"{device}, {threads}, {platform.machine()}, torch {torch.__version__}",
        "only": list(options.only),
        "left_out": left_out,
        **figures,
        "seconds": seconds,
    }
    if "error_budget" in figures:
        report["lost"] = stage_losses(figures["error_budget"], figures["reference"]["floor"]["frechet"])
    out = options.out or Path("outputs") / "evaluation" / "-".join([report["checkpoint"], *options.only])
    write_report(report, sections.values(), out)
    return report


def load_real_images(options: EvaluateOptions) -> RealImages:
    """Load the images to compare with, the validation images, and all training images.

    If some split has no images of some class, the first two have each of their captions as a class, and the training
    images have none. Raises UserError if there are fewer than two samples per class.
    """
    splits = options.data.load(options.split, "validation", "train", held_out=True)
    real = RealImages(*splits)
    if not all(data.classes and len(data.labels.unique()) == len(data.classes) for data in splits):
        real = RealImages(
            real.test.captions_as_classes(), real.validation.captions_as_classes(), replace(real.train, classes=())
        )
    fewest_samples = 2 * len(real.test.classes)
    if options.samples < fewest_samples:
        raise UserError(f"--samples must be at least {fewest_samples}: two for each caption of {real.test.name}")
    return real


def prepare_context(
    pipe: UnCLIP, clip_sha256: str, real: RealImages, options: EvaluateOptions, seconds: dict[str, float]
) -> EvaluationContext:
    """Train the judge and embed the real images, unless they are cached. Adds to `seconds` how long that took."""
    began = time.perf_counter()
    judge = trained_judge(real.train, real.validation, suited_to(options.judge, len(real.train)), pipe.device)
    if isinstance(judge, Matcher):
        judge.choose_among(real.test.class_captions)
    print_time("judge", began, seconds)
    began = time.perf_counter()
    clip = (pipe.clip, clip_sha256, pipe.tokenizer, pipe.preprocess, pipe.device)
    embedded_test = embed_images(real.test, *clip)
    # With captions as classes, only the test images themselves have the captions of the test images.
    embedded_drivers = embed_images(real.validation, *clip) if real.train.classes else embedded_test
    print_time("embedding", began, seconds)
    return EvaluationContext(
        pipe=pipe,
        reference=Reference.from_images(judge, real.test),
        embedded_test=embedded_test,
        embedded_drivers=embedded_drivers,
        train=real.train,
        samples_per_caption=options.samples // len(real.test.classes),
        seed=options.seed,
        sweep_samples=options.sweep,
        large=load_large_images(pipe, real, options),
        inception=options.inception,
        clip_score=options.clip_score,
    )


def load_large_images(pipe: UnCLIP, real: RealImages, options: EvaluateOptions) -> LargeImages | None:
    """Load the real images at the size that the pipeline's upsampler draws; None if it has none."""
    upsampler = find_upsampler(pipe)
    if upsampler is None:
        return None
    size = upsampler.config.network.factor * real.test.image_size
    return LargeImages(*replace(options.data, size=size).load(options.split, "train", held_out=True))


def find_upsampler(pipe: UnCLIP) -> DiffusionUpsampler | None:
    """The pipeline's upsampler, if it has one that diffuses."""
    upsampler = pipe.image_parts.get("upsampler")
    return upsampler if isinstance(upsampler, DiffusionUpsampler) else None


def suited_to(config: TrainConfig, images: int) -> TrainConfig:
    """A judge's training on so many images: at most JUDGE_EPOCHS of them, with all its intervals in proportion."""
    steps = min(config.steps, math.ceil(JUDGE_EPOCHS * images / config.batch_size))
    if steps == config.steps:
        return config
    names = ("warmup", "evaluate_every", "preview_every")
    intervals = {name: math.ceil(getattr(config, name) * steps / config.steps) for name in names}
    return replace(config, steps=steps, **intervals)


def choose_evaluators(
    pipe: UnCLIP, test: CaptionedImages, options: EvaluateOptions
) -> tuple[list[str], dict[str, str]]:
    """Return the evaluators that --only names; without it all that can run, and the needs of those that cannot.

    Raises UserError if a named one cannot run.
    """
    left_out = {name: item.needs for name, item in EVALUATORS.items() if not item.can_run(pipe, test, options)}
    if not options.only:
        return [name for name in EVALUATORS if name not in left_out], left_out
    for name in options.only:
        if name in left_out:
            raise UserError(f"--only {name} needs {left_out[name]}, which {options.checkpoint} or the command lacks")
    return [name for name in EVALUATORS if name in (ALWAYS, *options.only)], {}


def run_evaluators(context: EvaluationContext, names: list[str], seconds: dict[str, float]) -> dict[str, Section]:
    """Run these evaluators. Return their sections by name, and add to `seconds` how long each took."""
    sections = {}
    for name in names:
        began = time.perf_counter()
        sections[name] = EVALUATORS[name].run(context)
        print_time(name, began, seconds)
    return sections


def print_time(name: str, began: float, seconds: dict[str, float]) -> None:
    seconds[name] = round(time.perf_counter() - began, 1)
    print(f"{name.replace('_', ' ')}: {seconds[name]:.0f} s", flush=True)


def write_report(report: dict[str, Any], sections: Collection[Section], out: Path) -> None:
    """Write the report with its pictures and arrays into a folder, and print it."""
    pictures = {name: picture for section in sections for name, picture in section.pictures.items()}
    arrays = {name: array for section in sections for name, array in section.arrays.items()}
    for name, picture in pictures.items():
        save_png(out / f"{name}.png", picture)
    write_npz(out / "evaluation.npz", arrays)
    write_json(out / "evaluation.json", nan_to_none(report))
    text = markdown(report, list(pictures))
    write_atomically(out / "evaluation.md", text)
    print(f"\n{text}\nwith its pictures in {out / 'evaluation.md'}")


def nan_to_none(tree: Any) -> Any:
    """Replace NaN by None in nested dictionaries and lists: JSON has no NaN."""
    return json.loads(json.dumps(tree), parse_constant=lambda constant: None)
