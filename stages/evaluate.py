"""Measure a trained pipeline, stage by stage, and say which stage is at fault.

    python -m stages.evaluate                                           # the committed pipeline, 1,000 samples
    python -m stages.evaluate --checkpoint checkpoints/run --samples 10000
    python -m stages.evaluate --checkpoint checkpoints/run --sweep 200  # and a grid of guidance, steps and samplers
    python -m stages.evaluate --checkpoint checkpoints/emoji --data emoji --split validation

Prints a report, and writes it to --out as evaluation.json, as evaluation.md with pictures, and as evaluation.npz with
every image that the figures were taken on. On two CPU cores 1,000 samples of preset quick take four minutes, and some
more the first time: the classifier that judges them is trained on the real images, and cached.
"""

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip import signals

    signals.install()

import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import torch

from data.dataset import CaptionedImages
from stages.classifier import CaptionJudge, Classifier, judge, trained_classifier
from stages.data import DataConfig
from stages.embed import embed_dataset
from stages.loop import TrainConfig
from stages.measure import Evaluation
from stages.report import markdown
from unclip import UnCLIP, cli
from unclip.checkpoint import STAGES, read_manifest
from unclip.devices import pick_device
from unclip.errors import UserError
from unclip.fields import bounded
from unclip.files import write_arrays, write_atomically, write_json
from unclip.images import save_png
from unclip.metrics import frechet_distance, share
from unclip.settings import Device, Sampling, check_seeds

ROOT = Path(__file__).resolve().parent.parent
SWEEP = {
    "prior_guidance": (1.0, 1.5),
    "guidance": (1.0, 1.5, 2.5, 4.0),
    "guidance_interval": ((0.0, 1.0), (0.3, 0.8)),
    "sampler": ("dpmpp", "ddim", "ddpm"),
    "steps": (10, 20),
}


@dataclass(frozen=True)
class EvaluateOptions:
    checkpoint: Path = ROOT / "checkpoints" / "fashion-mnist"
    """Folder of a trained pipeline."""
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
    sampling: Sampling = field(default_factory=Sampling)
    """How to draw."""
    classifier: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=4800,
            batch_size=64,
            lr=3e-3,
            muon_lr=5e-3,
            warmup=450,
            ema=0.998,
            evaluate_every=1200,
            preview_every=4800,
        )
    )

    def __post_init__(self):
        if self.sweep and self.sweep < 20:
            raise UserError(f"--sweep must be 0 or at least 20, not {self.sweep}")
        check_seeds(self.seed, self.samples)


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Measure a pipeline and write the report. Returns what evaluation.json holds.

    Raises UserError if the pipeline is missing, damaged or unfinished.
    """
    device = pick_device(options.device)
    manifests = {stage: read_manifest(options.checkpoint / stage) for stage in STAGES}
    pipeline = UnCLIP.from_pretrained(options.checkpoint, device)
    test, validation, train = options.data.load(options.split, "validation", "train", held_out=True)
    if test.codes is None and not all(map(has_every_class, (test, validation, train))):
        # the captions take the place of classes, and the images of the split are the only ones of these captions
        test = validation = test.captions_as_classes()
        train = replace(train, classes=())
    if options.samples < 2 * len(test.classes):
        raise UserError(f"--samples must be at least {2 * len(test.classes)}: two for each caption of {test.name}")
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        done = work()
        seconds[name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
        return done

    classifier: Classifier | CaptionJudge
    if train.classes:
        classifier = timed("classifier", lambda: trained_classifier(train, validation, options.classifier, device))
    else:
        text = pipeline.encode_text(test.class_captions)
        classifier = CaptionJudge(pipeline.clip, pipeline.preprocess, text)
    parts = (pipeline.clip, manifests["clip"].sha256, pipeline.tokenizer, pipeline.preprocess)
    embedded, embedded_validation = timed(
        "embedding the test and validation images",
        lambda: [embed_dataset(images, *parts, device) for images in (test, validation)],
    )
    measure = Evaluation(
        pipeline, train, test, validation, embedded, embedded_validation, classifier, options.sampling, options.samples,
        options.seed,
    )  # fmt: skip
    shown = train if train.codes is None else options.data.load("train")[0]  # of fashion-mnist a part is held out
    report: dict[str, Any] = {
        "checkpoint": options.checkpoint.resolve().name,  # a report is handed on: no path of the machine
        "stages": {stage: {"sha256": m.sha256, "step": m.step} for stage, m in manifests.items()},
        "data": {"name": test.name, "fingerprint": test.fingerprint},
        "same_training_data": all(m.data.get("fingerprint") == shown.fingerprint for m in manifests.values()),
        "judge": "classifier" if train.classes else "the pipeline's own CLIP",
        "samples": measure.samples,
        "seed": options.seed,
        "sampling": asdict(options.sampling),
        "hardware": f"{device}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
    }
    sections = ["reference", "clip", "prior", "error_budget", "held_out", "memorisation"]
    for name in sections if test.codes is not None else [s for s in sections if s != "held_out"]:
        report[name] = timed(name.replace("_", " "), getattr(measure, name))
    report["lost"] = stage_losses(report)
    measure.denoising()
    if options.sweep:
        report["sweep"] = timed("sweep", lambda: sweep(options, pipeline, classifier, validation))
    report["seconds"] = seconds

    out = options.out or Path("outputs") / "evaluation" / options.checkpoint.resolve().name
    for name, picture in measure.pictures.items():
        save_png(out / f"{name}.png", picture)
    write_arrays(out / "evaluation.npz", measure.kept)
    write_json(out / "evaluation.json", without_nan(report))
    text = markdown(report, list(measure.pictures))
    write_atomically(out / "evaluation.md", text)
    print(f"\n{text}\nwith its pictures in {out / 'evaluation.md'}")
    return report


def has_every_class(data: CaptionedImages) -> bool:
    """Whether there are classes, and images of each."""
    return bool(data.classes) and len(data.labels.unique()) == len(data.classes)


def without_nan(tree: Any) -> Any:
    """The same with None for NaN, which JSON has no word for."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree


def stage_losses(report: dict[str, Any]) -> dict[str, Any]:
    """Where accuracy and realism are lost: the steps of two chains that lead from real images to the pipeline's.

    Accuracy: real images judged -> their embeddings read by CLIP (zero-shot) -> images decoded from them -> images
    decoded from the prior's. Frechet distance: the floor -> decoded from true embeddings -> from the prior's.

    The weakest stage by accuracy is "none" if the largest loss is within its own 95% interval.
    """
    budget, reference = report["error_budget"], report["reference"]
    true = budget["true embedding"]
    chain = [true["real_images"], true["zero_shot"], true["caption_accuracy"], budget["prior"]["caption_accuracy"]]
    frechet = [reference["floor"]["frechet"], true["frechet"], budget["prior"]["frechet"]]
    accuracy_lost, half_width = {}, {}
    for stage, (before, after) in zip(("clip", "decoder", "prior"), pairwise(chain), strict=True):
        accuracy_lost[stage] = before["value"] - after["value"]
        half_width[stage] = sum(((f["high"] - f["low"]) / 2) ** 2 for f in (before, after)) ** 0.5
    frechet_added = dict(zip(("decoder", "prior"), (b - a for a, b in pairwise(frechet)), strict=True))
    weakest = max(accuracy_lost, key=accuracy_lost.get)
    return {
        "accuracy_lost": accuracy_lost,
        "accuracy_lost_half_width": half_width,
        "frechet_added": frechet_added,
        "weakest_by_accuracy": weakest if accuracy_lost[weakest] > half_width[weakest] else "none",
        "weakest_by_frechet": max(frechet_added, key=frechet_added.get),
    }


def sweep(
    options: EvaluateOptions, pipeline: UnCLIP, classifier: Classifier | CaptionJudge, validation: CaptionedImages
) -> list[dict[str, Any]]:
    """Caption accuracy and Frechet distance for every combination of SWEEP, on the validation images.

    A choice made on the test images would flatter them. Best first: by the rank of the one plus that of the other.
    """
    captions, n = validation.class_captions, options.sweep // len(validation.classes)
    labels = torch.arange(len(captions)).repeat_interleave(n)
    text = [caption for caption in captions for _ in range(n)]
    seeds = list(range(options.seed, options.seed + len(text)))
    _, real = judge(classifier, validation.images)
    rows = []
    for values in product(*SWEEP.values()):
        setting = dict(zip(SWEEP, values, strict=True))
        if setting["guidance"] == 1 and setting["guidance_interval"] != (0.0, 1.0):
            continue  # no guidance is the same on every interval
        sampling = asdict(replace(options.sampling, eta=0.0, **setting))
        embeddings = pipeline.embed(text, 1, seeds, **sampling)
        logits, features = judge(classifier, pipeline.decode(embeddings, text, seeds, **sampling))
        accuracy = share(logits.argmax(dim=1) == labels)
        rows.append({**setting, "caption_accuracy": accuracy, "frechet": frechet_distance(features, real)})
        print(f"{setting}: accuracy {accuracy['value']:.3f}, Frechet {rows[-1]['frechet']:.3f}", flush=True)
    return by_both_ranks(rows)


def by_both_ranks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted by how many settings are more accurate plus how many are closer to real images; ties share a rank."""

    def rank(row: dict[str, Any]) -> int:
        more_accurate = sum(other["caption_accuracy"]["value"] > row["caption_accuracy"]["value"] for other in rows)
        return more_accurate + sum(other["frechet"] < row["frechet"] for other in rows)

    return sorted(rows, key=rank)


if __name__ == "__main__":
    cli.run(lambda: evaluate(cli.parse(EvaluateOptions, __doc__)))
