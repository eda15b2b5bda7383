"""Measures of image edits: each makes one kind of edit on real images, and tells how well it does."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from data.dataset import CaptionedImages
from data.fashion_mnist_captions import attribute_captions, attribute_codes, attributes
from stages.evaluation.attributes import has_attributes
from stages.evaluation.judge import Classifier, judge_images
from stages.evaluation.metrics import mean_with_interval, share_with_interval
from stages.evaluation.report import number, percent
from stages.evaluation.samples import repeat_rows
from unclip import UnCLIP, edit
from unclip.errors import UserError

STEPS = 100
"""Steps of the inversion."""
FRAMES = 8
"""Frames of a blend."""
VARIATIONS = 8
"""Variations of an image."""
AMOUNT = 0.5
"""How far an image is changed."""


@dataclass(frozen=True)
class EditContext:
    """The pipeline, and N real images of several classes to edit."""

    pipe: UnCLIP
    classifier: Classifier
    data: CaptionedImages
    rows: Tensor
    """Rows (N,) of the data: the images to edit."""
    seed: int

    @cached_property
    def images(self) -> np.ndarray:
        """The images to edit, uint8 (N, H, W, C)."""
        return self.load_images(self.rows)

    @property
    def labels(self) -> Tensor:
        return self.data.labels[self.rows]

    @property
    def captions(self) -> list[str]:
        return [self.data.class_captions[label] for label in self.labels]

    @cached_property
    def reconstructions(self) -> np.ndarray:
        """The images, inverted and drawn again, uint8 (N, H, W, C)."""
        return edit.reconstruct(self.pipe, edit.invert(self.pipe, self.images, steps=STEPS))

    def load_images(self, rows: Tensor) -> np.ndarray:
        """Return images of the data, uint8 (N, H, W, C), at the decoder's size."""
        return edit.prepare_images(self.pipe, self.data.images[rows].permute(0, 2, 3, 1))

    def classify(self, images: np.ndarray) -> Tensor:
        """Return the classes (...) that the classifier sees in images (..., H, W, C)."""
        scores, _ = judge_images(self.classifier, images.reshape(-1, *images.shape[-3:]))
        return scores.argmax(dim=1).view(images.shape[:-3])

    def shuffle(self, rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))]


@dataclass(frozen=True)
class Measurement:
    """A row of the table."""

    name: str
    wanted: str
    figure: dict[str, float]
    """{"value"}; of a share or a mean also its 95% interval and its count: {"value", "low", "high", "n"}."""
    text: str


def measure_share(name: str, wanted: str, outcomes: Tensor) -> Measurement:
    """The share of True in bool (N,)."""
    figure = share_with_interval(outcomes)
    return Measurement(name, wanted, figure, percent(figure))


def measure_mean(name: str, wanted: str, values: Tensor) -> Measurement:
    """The mean of float (N,)."""
    figure = mean_with_interval(values)
    return Measurement(name, wanted, figure, number(figure, digits=2))


def measure_number(name: str, wanted: str, value: float) -> Measurement:
    return Measurement(name, wanted, {"value": value}, f"{value:.2f}")


EditMeasure = Callable[[EditContext], tuple[list[Measurement], np.ndarray]]
"""Makes one kind of edit. Returns measurements and the images behind them."""


def psnr(images: np.ndarray, others: np.ndarray) -> Tensor:
    """Return the peak signal-to-noise ratio (N,) in dB of uint8 images (N, H, W, C).

    Equal images count as if one value were off by one, so that a mean exists.
    """
    squares = (images.astype(float) - others) ** 2
    error = torch.from_numpy(squares.reshape(len(images), -1)).mean(dim=1)
    return 10 * torch.log10(255**2 / error.clamp(min=1 / images[0].size))


def mean_distance(images: np.ndarray) -> float:
    """Return the mean Euclidean distance between any two of uint8 images (N, H, W, C)."""
    return torch.pdist(torch.from_numpy(images.reshape(len(images), -1)).float()).mean().item()


def measure_real_images(context: EditContext) -> tuple[list[Measurement], np.ndarray]:
    is_right = context.classify(context.images) == context.labels
    return [measure_share("real images: class seen", "", is_right)], context.images


def measure_inversion(context: EditContext) -> tuple[list[Measurement], np.ndarray]:
    quality = psnr(context.reconstructions, context.images)
    return [
        measure_mean(f"inversion, {STEPS} steps: PSNR in dB, mean", "at least 40", quality),
        measure_number(f"inversion, {STEPS} steps: PSNR in dB, worst", "at least 28", quality.min().item()),
    ], context.reconstructions


def measure_variations(context: EditContext) -> tuple[list[Measurement], np.ndarray]:
    """Compare the variations of an image among each other, and with real images of its class."""
    variations = edit.vary(context.pipe, context.images, n=VARIATIONS, seed=context.seed).images
    variations = variations.reshape(-1, VARIATIONS, *variations.shape[1:])
    real_distances = {}
    for label in context.labels.unique().tolist():
        rows = context.shuffle((context.data.labels == label).nonzero()[:, 0])
        real_distances[label] = mean_distance(context.load_images(repeat_rows(rows, VARIATIONS)))
    distances = torch.tensor([mean_distance(images) for images in variations])
    real = torch.tensor([real_distances[label] for label in context.labels.tolist()])
    is_right = (context.labels[:, None] == context.classify(variations)).flatten()
    return [
        measure_share("variations: the image's class seen", "at least 85%", is_right),
        measure_mean(
            f"variations: distance among {VARIATIONS}, over that of real ones", "at least 0.30", distances / real
        ),
    ], variations


def measure_blends(context: EditContext) -> tuple[list[Measurement], np.ndarray]:
    """Blend each image with another one, of another class."""
    labels = context.labels
    partners = context.shuffle(torch.arange(len(context.rows)))
    first = (labels != labels[partners]).nonzero()[:, 0]
    if not len(first):
        raise UserError("no two of these images are of different classes; raise --images")
    last = partners[first]
    frames = edit.blend(context.pipe, context.images[first], context.images[last], frames=FRAMES)
    quality = torch.cat(
        [psnr(frames[:, 0], context.reconstructions[first]), psnr(frames[:, -1], context.reconstructions[last])]
    )
    classes = context.classify(frames)  # (pairs, FRAMES)
    is_steady = (classes[:, 1:] != classes[:, :-1]).sum(dim=1) <= 1
    is_right = (classes[:, 0] == labels[first]) & (classes[:, -1] == labels[last])
    return [
        measure_mean("blend: ends against the reconstructions, PSNR in dB, mean", "at least 40", quality),
        measure_share("blend: at most one change of the class seen", "at least 70%", is_steady),
        measure_share("blend: ... from the first image's true class to the other's", "", is_steady & is_right),
    ], frames


def measure_change(context: EditContext, measure: int) -> tuple[list[Measurement], np.ndarray]:
    """Change images that show the low extreme of a measure of data/fashion_mnist_captions.py to the high one."""
    data = context.data
    requests = {(request.label, request.measure, request.code): request for request in attribute_captions()}
    rows = context.shuffle((data.attributes[:, measure] == 1).nonzero()[:, 0])[: len(context.rows)]
    rows = rows[data.labels[rows].argsort(stable=True)]
    labels = data.labels[rows]
    parts = []
    for label in labels.unique().tolist():  # the captions name the class
        before, after = (requests[label, measure, code].caption for code in (1, 2))
        images = context.load_images(rows[labels == label])
        parts.append(edit.change(context.pipe, images, before, after, amounts=[AMOUNT])[:, 0])
    changed = np.concatenate(parts)
    codes = attribute_codes(attributes(torch.from_numpy(changed).permute(0, 3, 1, 2)), labels, data.bounds)
    low, high = (requests[0, measure, code].word for code in (1, 2))
    name = f"change, {low} to {high}, amount {AMOUNT}"
    return [
        measure_share(f"{name}: {high} by the rule", "at least 85%", codes[:, measure] == 2),
        measure_share(f"{name}: class kept", "at least 85%", context.classify(changed) == labels),
    ], changed


def measure_mixes(context: EditContext) -> tuple[list[Measurement], np.ndarray]:
    """Mix each class, half and half, with the class whose caption is nearest to its own by CLIP."""
    captions = context.data.class_captions
    n = max(1, len(context.rows) // len(context.data.classes))
    text = context.pipe.encode_text(captions).cpu()
    neighbours = (text @ text.T).fill_diagonal_(-1).argmax(dim=1)
    mixes = [
        edit.mix(context.pipe, {captions[label]: 0.5, captions[neighbour]: 0.5}, n=n, seed=context.seed).images
        for label, neighbour in enumerate(neighbours.tolist())
    ]
    classes = context.classify(np.stack(mixes))  # (classes, n)
    is_class = classes == torch.arange(len(captions))[:, None]
    is_neighbour = classes == neighbours[:, None]
    rarer = torch.minimum(is_class.double().mean(), is_neighbour.double().mean()).item()
    name = "mix, half and half of neighbouring classes"
    return [
        measure_share(f"{name}: either class seen", "at least 90%", (is_class | is_neighbour).flatten()),
        measure_number(f"{name}: share of the rarer", "at least 0.20", rarer),
    ], np.concatenate(mixes)


def measure_inpainting(context: EditContext) -> tuple[list[Measurement], np.ndarray]:
    """Inpaint the lower half, with the caption of the image's class."""
    images = context.images
    middle = images.shape[1] // 2
    mask = np.zeros(images.shape[1:3], bool)
    mask[middle:] = True
    inpainted = edit.inpaint(context.pipe, images, mask, context.captions, seed=context.seed).images
    seam = border_gradient(inpainted, middle) / border_gradient(images, middle)
    is_identical = torch.from_numpy((inpainted == images)[:, :middle].all(axis=(1, 2, 3)))
    is_right = context.classify(inpainted) == context.labels
    return [
        measure_share("inpaint, lower half: outside identical", "100%", is_identical),
        measure_share("inpaint, lower half: class seen", "at least 90%", is_right),
        measure_number("inpaint, lower half: gradient across the border, 1 in the images", "at most 1.3", seam),
    ], inpainted


def border_gradient(images: np.ndarray, row: int) -> float:
    """Return the mean absolute difference between a row of pixels and the one above it, of uint8 (N, H, W, C)."""
    return float(np.abs(images[:, row].astype(float) - images[:, row - 1]).mean())


MEASURES: dict[str, EditMeasure] = {
    "real": measure_real_images,
    "inversion": measure_inversion,
    "variations": measure_variations,
    "blends": measure_blends,
    "mixes": measure_mixes,
    "paintings": measure_inpainting,
}
"""All measures, by the names under which edits.npz holds the images behind them."""
ATTRIBUTE_MEASURES: dict[str, EditMeasure] = {
    "dark to light": partial(measure_change, measure=0),
    "narrow to wide": partial(measure_change, measure=1),
}
"""Measures for data with attributes."""


def measure_edits(context: EditContext) -> tuple[list[Measurement], dict[str, np.ndarray]]:
    """Take all measures, and print them. Return measurements, and the images behind them by the measure's name."""
    measures = MEASURES | (ATTRIBUTE_MEASURES if has_attributes(context.data) else {})
    measurements = []
    arrays = {}
    for name, measure in measures.items():
        rows, arrays[name] = measure(context)
        measurements += rows
        print("\n".join(f"{row.name}: {row.text}" for row in rows), flush=True)
    return measurements, arrays
