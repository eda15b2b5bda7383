"""Measure what `unclip/edit` promises, on real images, as the classifier of the evaluation sees them.

    python -m stages.evaluation.edits                                   # the committed pipeline, 200 test images
    python -m stages.evaluation.edits --checkpoint checkpoints/run --images 20

Prints a table, and writes it to outputs/edits/NAME as edits.md and edits.json, with all images in edits.npz. It takes
any pipeline whose data has classes; of dark and light, narrow and wide only Fashion-MNIST knows. On two CPU cores 200
images take twelve minutes, and some more the first time, when the classifier is trained and cached.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data.dataset import CaptionedImages
from data.fashion_mnist_captions import attribute_captions, attribute_codes, attributes
from stages.data_config import DataConfig
from stages.evaluation.attributes import has_attributes
from stages.evaluation.evaluate import JUDGE, ROOT, without_nan
from stages.evaluation.judge import Classifier, judge, trained_judge
from stages.evaluation.metrics import mean, share
from stages.evaluation.reference import first
from stages.evaluation.report import number, percent, table
from stages.loop import TrainConfig
from unclip import UnCLIP, edit
from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.devices import pick_device
from unclip.errors import UserError
from unclip.fields import bounded
from unclip.settings import Device, check_seeds
from unclip.store.array_files import write_npz
from unclip.store.files import write_atomically
from unclip.store.sealed_json import write_json

STEPS, FRAMES, VARIATIONS = 100, 8, 8
"""Steps of the inversion, frames of a blend, variations of an image."""
AMOUNT = 0.5
"""How far an image is changed."""


@dataclass(frozen=True)
class EditsOptions:
    checkpoint: Path = ROOT / "checkpoints" / "fashion-mnist"
    """Folder of a trained pipeline, or its name OWNER/NAME on the Hugging Face Hub."""
    images: int = bounded(200, 10, 10**5)
    """Real images that each kind of edit is tried on."""
    seed: int = bounded(0, 0, 2**62)
    """Which images are taken, and the seed of all edits."""
    out: Path | None = None
    """Folder for the report (default: outputs/edits/NAME)."""
    device: Device = "auto"
    """Where to draw: auto takes a GPU if there is one."""
    split: Literal["test", "validation"] = "test"
    """Whose images; what is chosen on validation leaves the test images unseen."""
    data: DataConfig = field(default_factory=DataConfig)
    judge: TrainConfig = JUDGE
    """How the classifier is trained."""

    def __post_init__(self):
        check_seeds(self.seed, self.images)


@dataclass(frozen=True)
class Bench:
    """What every measure is taken with: N real images of some classes."""

    pipe: UnCLIP
    classifier: Classifier
    data: CaptionedImages
    rows: Tensor
    """Which of the data's images (N,)."""
    seed: int

    @property
    def images(self) -> np.ndarray:
        return self.pictures(self.rows)

    @property
    def labels(self) -> Tensor:
        return self.data.labels[self.rows]

    @property
    def captions(self) -> list[str]:
        return [self.data.class_captions[label] for label in self.labels]

    def pictures(self, rows: Tensor) -> np.ndarray:
        """uint8 (N, H, W, C), of the decoder's size."""
        return edit.prepare_images(self.pipe, self.data.images[rows].permute(0, 2, 3, 1))

    def seen(self, images: np.ndarray) -> Tensor:
        """The classes (...) that the classifier sees in images (..., H, W, C)."""
        return judge(self.classifier, images.reshape(-1, *images.shape[-3:]))[0].argmax(dim=1).view(images.shape[:-3])

    @cached_property
    def reconstructed(self) -> np.ndarray:
        """The images, inverted and drawn again (N, H, W, C)."""
        return edit.reconstruct(self.pipe, edit.invert(self.pipe, self.images, steps=STEPS))

    def shuffled(self, rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))]


@dataclass(frozen=True)
class Measured:
    """A row of the table."""

    name: str
    wanted: str
    figure: dict[str, float]
    """{"value"}, and of a share or a mean also its 95% interval and its count: {"value", "low", "high", "n"}."""
    shown: str


def told(name: str, wanted: str, values: Tensor | float) -> Measured:
    """The share of bool (N,), the mean of float (N,), or a number as it is."""
    if isinstance(values, float):
        return Measured(name, wanted, {"value": values}, f"{values:.2f}")
    if values.dtype == torch.bool:
        return Measured(name, wanted, share(values), percent(share(values)))
    return Measured(name, wanted, mean(values), number(mean(values), digits=2))


Kind = tuple[list[Measured], np.ndarray]
"""What was measured of a kind of edit, and the images behind it."""


def psnr(one: np.ndarray, other: np.ndarray) -> Tensor:
    """Peak signal-to-noise ratio (N,) in dB of uint8 images (N, H, W, C).

    Equal images count as if one value were off by one, so that there is a mean.
    """
    error = torch.from_numpy(((one.astype(float) - other) ** 2).reshape(len(one), -1)).mean(dim=1)
    return 10 * torch.log10(255**2 / error.clamp(min=1 / one[0].size))


def real_images(bench: Bench) -> Kind:
    right = bench.seen(bench.images) == bench.labels
    return [told("real images: class seen", "", right)], bench.images


def inversion(bench: Bench) -> Kind:
    quality = psnr(bench.reconstructed, bench.images)
    return [
        told(f"inversion, {STEPS} steps: PSNR in dB, mean", "at least 40", quality),
        told(f"inversion, {STEPS} steps: PSNR in dB, worst", "at least 28", quality.min().item()),
    ], bench.reconstructed


def variations(bench: Bench) -> Kind:
    drawn = edit.vary(bench.pipe, bench.images, n=VARIATIONS, seed=bench.seed).images
    drawn = drawn.reshape(-1, VARIATIONS, *drawn.shape[1:])
    of_class = {c: bench.pictures(first(bench.shuffled((bench.data.labels == c).nonzero()[:, 0]), VARIATIONS))
                for c in bench.labels.unique().tolist()}  # fmt: skip
    ours = torch.tensor([spread(own) for own in drawn])
    real = torch.tensor([spread(of_class[c]) for c in bench.labels.tolist()])
    return [
        told(
            "variations: the image's class seen", "at least 85%", (bench.labels[:, None] == bench.seen(drawn)).flatten()
        ),
        told(f"variations: distance among {VARIATIONS}, over that of real ones", "at least 0.30", ours / real),
    ], drawn


def spread(images: np.ndarray) -> float:
    """Mean Euclidean distance between any two of uint8 images (N, H, W, C)."""
    return torch.pdist(torch.from_numpy(images.reshape(len(images), -1)).float()).mean().item()


def blends(bench: Bench) -> Kind:
    """Of each image with another one, of another class."""
    labels, b = bench.labels, bench.shuffled(torch.arange(len(bench.rows)))
    a = (labels != labels[b]).nonzero()[:, 0]
    if not len(a):
        raise UserError("no two of these images are of different classes; raise --images")
    b = b[a]
    frames = edit.blend(bench.pipe, bench.images[a], bench.images[b], frames=FRAMES)
    quality = torch.cat([psnr(frames[:, at], bench.reconstructed[end]) for at, end in ((0, a), (-1, b))])
    seen = bench.seen(frames)  # (pairs, FRAMES)
    steady = (seen[:, 1:] != seen[:, :-1]).sum(dim=1) <= 1
    right = (seen[:, 0] == labels[a]) & (seen[:, -1] == labels[b])
    return [
        told("blend: ends against the reconstructions, PSNR in dB, mean", "at least 40", quality),
        told("blend: at most one change of the class seen", "at least 70%", steady),
        told("blend: ... from the one's true class to the other's", "", steady & right),
    ], frames


def changes(bench: Bench, measure: int) -> Kind:
    """Images that show the one extreme of a measure of data/fashion_mnist_captions.py, moved to the other."""
    data, asked = bench.data, {(a.label, a.measure, a.code): a for a in attribute_captions()}
    rows = bench.shuffled((data.attributes[:, measure] == 1).nonzero()[:, 0])[: len(bench.rows)]
    rows = rows[data.labels[rows].argsort(stable=True)]
    drawn = []
    for label in data.labels[rows].unique().tolist():  # the captions name the class
        before, after = (asked[label, measure, code].caption for code in (1, 2))
        given = bench.pictures(rows[data.labels[rows] == label])
        drawn.append(edit.change(bench.pipe, given, before, after, amounts=[AMOUNT])[:, 0])
    drawn, labels = np.concatenate(drawn), data.labels[rows]
    codes = attribute_codes(attributes(torch.from_numpy(drawn).permute(0, 3, 1, 2)), labels, data.bounds)
    low, high = (asked[0, measure, code].word for code in (1, 2))
    return [
        told(f"change, {low} to {high}, amount {AMOUNT}: {high} by the rule", "at least 85%", codes[:, measure] == 2),
        told(f"change, {low} to {high}, amount {AMOUNT}: class kept", "at least 85%", bench.seen(drawn) == labels),
    ], drawn


def mixes(bench: Bench) -> Kind:
    """Half of each class, half of the class whose caption is nearest to its own by CLIP."""
    captions, n = bench.data.class_captions, max(1, len(bench.rows) // len(bench.data.classes))
    text = bench.pipe.encode_text(captions).cpu()
    nearest = (text @ text.T).fill_diagonal_(-1).argmax(dim=1).tolist()
    drawn = [edit.mix(bench.pipe, {captions[c]: 0.5, captions[d]: 0.5}, n=n, seed=bench.seed).images
             for c, d in enumerate(nearest)]  # fmt: skip
    seen = bench.seen(np.stack(drawn))  # (classes, n)
    one, other = (seen == torch.arange(len(captions))[:, None]), (seen == torch.tensor(nearest)[:, None])
    rarer = torch.minimum(one.double().mean(), other.double().mean()).item()
    return [
        told("mix, half and half of neighbouring classes: either class seen", "at least 90%", (one | other).flatten()),
        told("mix, half and half of neighbouring classes: share of the rarer", "at least 0.20", rarer),
    ], np.concatenate(drawn)


def paintings(bench: Bench) -> Kind:
    """The lower half painted anew, with the caption of the image's class."""
    given = bench.images
    middle = given.shape[1] // 2
    mask = np.zeros(given.shape[1:3], bool)
    mask[middle:] = True
    drawn = edit.inpaint(bench.pipe, given, mask, bench.captions, seed=bench.seed).images
    across = [np.abs(images[:, middle].astype(float) - images[:, middle - 1]).mean() for images in (drawn, given)]
    seam = float(across[0] / across[1])
    outside = torch.from_numpy((drawn == given)[:, :middle].all(axis=(1, 2, 3)))
    return [
        told("inpaint, lower half: outside identical", "100%", outside),
        told("inpaint, lower half: class seen", "at least 90%", bench.seen(drawn) == bench.labels),
        told("inpaint, lower half: gradient across the border, 1 in the images", "at most 1.3", seam),
    ], drawn


def measure(bench: Bench) -> tuple[list[Measured], dict[str, np.ndarray]]:
    """All figures, and the images behind them by kind."""
    kinds: dict[str, Callable[[Bench], Kind]] = {
        "real": real_images, "inversion": inversion, "variations": variations, "blends": blends, "mixes": mixes,
        "paintings": paintings,
    }  # fmt: skip
    if has_attributes(bench.data):
        kinds |= {"dark to light": lambda b: changes(b, 0), "narrow to wide": lambda b: changes(b, 1)}
    figures, arrays = [], {}
    for name, work in kinds.items():
        own, arrays[name] = work(bench)
        figures += own
        print("\n".join(f"{m.name}: {m.shown}" for m in own), flush=True)
    return figures, arrays


def evaluate_edits(options: EditsOptions) -> dict[str, Any]:
    """Measure a pipeline's edits and write the report. Returns what edits.json holds.

    Raises UserError if the data has no classes, or if the pipeline cannot be opened.
    """
    device = pick_device(options.device)
    pipe = UnCLIP.from_pretrained(options.checkpoint, device)
    test, validation, train = splits = options.data.load(options.split, "validation", "train", held_out=True)
    if not all(data.classes and len(data.labels.unique()) == len(data.classes) for data in splits):
        raise UserError(f"{test.name} has no images of classes that a classifier could tell apart; choose other --data")
    classifier = trained_judge(train, validation, options.judge, device)
    everything = Bench(pipe, classifier, test, torch.arange(len(test)), options.seed)
    bench = Bench(pipe, classifier, test, everything.shuffled(everything.rows)[: options.images], options.seed)
    figures, arrays = measure(bench)
    name = options.checkpoint.resolve().name
    out = options.out or Path("outputs") / "edits" / name
    report = {
        "checkpoint": name,
        "data": {"name": test.name, "fingerprint": test.fingerprint},
        "images": len(bench.rows),
        "seed": options.seed,
        "figures": {m.name: m.figure | {"wanted": m.wanted} for m in figures},
    }
    text = table(["figure", "wanted", "value"], [[m.name, m.wanted, m.shown] for m in figures])
    write_npz(out / "edits.npz", arrays)
    write_json(out / "edits.json", without_nan(report))
    write_atomically(out / "edits.md", f"# Edits by {name}, {len(bench.rows)} images of {test.name}\n\n{text}")
    print(f"\n{text}\nalso in {out / 'edits.md'}")
    return report


def main(argv: Sequence[str] | None = None) -> None:
    evaluate_edits(parse(EditsOptions, __doc__, argv=argv))


if __name__ == "__main__":
    run(main)
