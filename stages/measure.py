"""What is measured of a trained pipeline: one section a method, each a dictionary of figures.

A share or a mean is {"value", "low", "high", "n"} with its 95% interval.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.captions import Asked, attribute_captions, attribute_codes, attributes
from data.dataset import CaptionedImages
from stages.classifier import CaptionJudge, Classifier, judge
from stages.clip import caption_recall
from stages.embed import Embedded
from stages.prior import pair_cosines
from unclip import UnCLIP
from unclip.errors import UserError
from unclip.images import captioned_grid, denoising_strip
from unclip.metrics import (
    confusion,
    coverage,
    frechet_distance,
    mean,
    modality_gap,
    nearest,
    same_group_cosine,
    share,
)
from unclip.settings import Sampling

WAYS = ("true embedding", "prior", "text embedding", "caption alone", "nothing")
"""What drives the decoder: the error budget compares them (Ramesh et al. 2022, section 5.1)."""
SHOWN = 20
"""Classes in the pictures."""
PRIOR_GUIDANCE = (1.0, 1.5, 2.0, 4.0)


@dataclass
class Evaluation:
    """What the sections share."""

    pipeline: UnCLIP
    train: CaptionedImages
    """All the real training images, those of the held-out pairs included."""
    test: CaptionedImages
    validation: CaptionedImages
    """Their embeddings stand for the true ones: the test images are what the results are compared with."""
    embedded: Embedded
    """The test set as the pipeline's CLIP sees it."""
    embedded_validation: Embedded
    classifier: Classifier | CaptionJudge
    sampling: Sampling
    samples: int
    """Images drawn for each figure, as many of each class."""
    seed: int
    features: Tensor = field(init=False)
    """The classifier's features of the test images."""
    predicted: Tensor = field(init=False)
    """The classes that it sees in them."""
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays for evaluation.npz."""
    pictures: dict[str, Image.Image] = field(default_factory=dict)

    def __post_init__(self):
        self.samples -= self.samples % len(self.test.classes)
        logits, self.features = judge(self.classifier, self.test.images)
        self.predicted = logits.argmax(dim=1)

    # -- the sections -----------------------------------------------------------------------------------------------

    def clip(self) -> dict[str, Any]:
        """Zero-shot accuracy, caption retrieval, attributes, and the modality gap."""
        images, test = self.embedded.images, self.test
        prompts = [self.pipeline.encode_text(captions).mean(dim=0).cpu() for captions in test.class_prompts]
        plain = self.pipeline.encode_text(test.class_captions).cpu()
        ensemble = F.normalize(torch.stack(prompts), dim=-1)  # Radford et al. 2021, section 3.1.4
        right = (images @ ensemble.T).argmax(dim=1) == test.labels
        by_class = {name: share(right[test.labels == c]) for c, name in enumerate(test.classes)}
        torch.manual_seed(self.seed)
        drawn = self.embedded.text[test.draw(torch.arange(len(test)), False)]
        figures = {
            "zero_shot": share(right),
            "zero_shot_plain_caption": share((images @ plain.T).argmax(dim=1) == test.labels),
            "zero_shot_by_class": by_class,
            "recall": caption_recall(images, test, lambda ids: self.embedded.text[ids]),
            "modality_gap": modality_gap(images, drawn),
            "images": len(test),
        }
        if test.codes is not None:
            figures["attributes"] = {
                name: share(self._tells_apart(measure))
                for measure, name in enumerate(("dark or light", "narrow or wide"))
            }
        return figures

    def _tells_apart(self, measure: int) -> Tensor:
        """Of the test images that show an extreme of a measure: whether the right word is nearer than its opposite."""
        images, asked = self.embedded.images, attribute_captions()
        text = self.pipeline.encode_text([a.caption for a in asked]).cpu()
        codes, labels = self.test.codes[:, measure], self.test.labels
        extremes = {(a.label, a.code): text[i] for i, a in enumerate(asked) if a.measure == measure}
        low, high = (torch.stack([extremes[c, code] for c in range(len(self.test.classes))]) for code in (1, 2))
        nearer_high = (images * (high - low)[labels]).sum(dim=1) > 0
        return (nearer_high == (codes == 2))[codes > 0]

    def prior(self) -> dict[str, Any]:
        """Cosines to the true embedding, with their ceiling and floors; and how far the draws of a caption spread."""
        count = min(self.samples, len(self.test))
        base = replace(self.sampling, draws=1, batch_size=500)
        rows = [{"draws": 1, "prior_guidance": scale} for scale in PRIOR_GUIDANCE]
        rows.append({"draws": 2, "prior_guidance": base.prior_guidance})
        embedded = self.embedded.to(self.pipeline.device)
        for row in rows:
            cosines = pair_cosines(self.pipeline.prior, embedded, self.test, count, replace(base, **row))
            row |= {name: mean(values) for name, values in cosines.items()}
        n = max(2, count // len(self.test.classes))
        drawn = self.pipeline.embed(self.test.class_captions, n, self.seed, **asdict(base)).cpu()
        groups = torch.arange(len(self.test.classes)).repeat_interleave(n)
        return {
            "cosines": rows,
            "spread_of_draws": mean(1 - same_group_cosine(drawn, groups)),
            "spread_of_real": mean(1 - same_group_cosine(self.embedded.images, self.test.labels)),
        }

    def error_budget(self) -> dict[str, Any]:
        """The same figures for each way to drive the decoder, on the ten plain captions and on attribute captions."""
        classes = len(self.test.classes)
        n, n_asked = self.samples // classes, max(1, self.samples // 100)
        labels = torch.arange(classes).repeat_interleave(n)
        asked = [a for a in attribute_captions() if not a.held_out] if self.test.codes is not None else []
        report: dict[str, Any] = {}
        shown = []
        for way in WAYS:
            began = time.perf_counter()
            sources = [self._rows_of(c) for c in range(classes)]
            images, embeddings = self.draw(way, list(self.test.class_captions), n, sources)
            logits, features = judge(self.classifier, images)
            by_class = images.reshape(classes, n, *images.shape[1:])
            self.kept |= {f"{way}: images": images, f"{way}: labels": labels.numpy()}
            report[way] = {
                "caption_accuracy": share(logits.argmax(dim=1) == labels),
                **self._distribution(features),
            }
            if way == "prior":
                report[way] |= self._details(images, logits, labels)
                self.kept["prior: embeddings"] = embeddings.numpy()
            if way == "true embedding":
                report[way] |= self._sources(torch.cat([_first(rows, n) for rows in sources]))
            if asked and way != "nothing":
                report[way]["attributes"], _ = self._obedience(way, asked, n_asked)
            shown.append((way, np.concatenate(by_class[:SHOWN, :2])))
            print(f"  decoder driven by {way}: {time.perf_counter() - began:.0f} s", flush=True)
        self.pictures["budget"] = captioned_grid(shown, columns=self.test.classes[:SHOWN])
        return report

    def _sources(self, rows: Tensor) -> dict[str, Any]:
        """How the images whose embeddings drive the decoder are read themselves: by the judge, and by CLIP."""
        labels = self.validation.labels[rows]
        plain = self.pipeline.encode_text(self.test.class_captions).cpu()
        judged, _ = judge(self.classifier, self.validation.images[rows])
        return {
            "real_images": share(judged.argmax(dim=1) == labels),
            "zero_shot": share((self.embedded_validation.images[rows] @ plain.T).argmax(dim=1) == labels),
        }

    def _details(self, images: np.ndarray, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """What is reported of the whole pipeline alone."""
        n = len(images) // len(self.test.classes)
        self.pictures["grid"] = captioned_grid(
            [(c, images[i * n : i * n + min(n, 8)]) for i, c in enumerate(self.test.class_captions[:SHOWN])]
        )
        right = logits.argmax(dim=1) == labels
        by_class = {name: share(right[labels == c]) for c, name in enumerate(self.test.classes)}
        return {
            "caption_accuracy_by_class": by_class,
            "confusion": confusion(labels, logits.argmax(dim=1), len(self.test.classes)).tolist(),
            "inception_fid": inception_fid(images, self.test.images, self.pipeline.device),
        }

    def held_out(self) -> dict[str, Any]:
        """Obedience to the pairs of class and attribute that no training caption or image shows."""
        asked = [a for a in attribute_captions() if a.held_out]
        figures, images = self._obedience("prior", asked, max(2, self.samples // 20))
        rows = [(a.caption, part[:8]) for a, part in zip(asked, images, strict=True)]
        every = sorted(attribute_captions(), key=lambda a: a.label)
        cells = np.split(self.draw("prior", [a.caption for a in every], 2)[0], len(self.test.classes))
        self.pictures["attributes"] = captioned_grid(
            list(zip(self.test.classes, cells, strict=True)), columns=[a.word for a in every if a.label == 0]
        )
        self.pictures["held-out"] = captioned_grid(rows)
        return figures

    def _obedience(self, way: str, asked: list[Asked], n: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        """How many of n samples a caption obey the rule of data/captions.py, by attribute, and are of the class."""
        sources = [self._rows_of(a.label, a.measure, a.code) for a in asked]
        images, _ = self.draw(way, [a.caption for a in asked], n, sources)
        labels = torch.tensor([a.label for a in asked]).repeat_interleave(n)
        measured = attributes(torch.from_numpy(images).permute(0, 3, 1, 2))
        codes = attribute_codes(measured, labels, self.test.thirds).view(len(asked), n, 2)
        obeyed = torch.stack([codes[i, :, a.measure] == a.code for i, a in enumerate(asked)])
        right = (judge(self.classifier, images)[0].argmax(dim=1) == labels).view(len(asked), n)
        names = [a.caption.removeprefix("an image of ") if a.held_out else a.word for a in asked]
        figures = {}
        for name in dict.fromkeys(names):
            chosen = torch.tensor([other == name for other in names])
            figures[name] = {"obeyed": share(obeyed[chosen].flatten()), "class": share(right[chosen].flatten())}
        figures["all"] = {"obeyed": share(obeyed.flatten()), "class": share(right.flatten())}
        kind = "held-out" if asked[0].held_out else "attributes"
        self.kept |= {
            f"{way}: {kind} images": images,
            f"{way}: {kind} captions": np.repeat([a.caption for a in asked], n),
        }
        return figures, np.split(images, len(asked))

    def reference(self) -> dict[str, Any]:
        """What real images score: the classifier's accuracy, the floor of the distances, and the noise ceiling."""
        generator = torch.Generator().manual_seed(self.seed)
        n = self.samples // len(self.test.classes)
        shuffled = torch.randperm(len(self.train), generator=generator)
        if self.train.classes:  # as many of each class as are drawn
            own = self.train.labels[shuffled]
            shuffled = torch.cat([_first(shuffled[own == c], n) for c in range(len(self.test.classes))])
        real = self.train.images[shuffled[: n * len(self.test.classes)]]
        noise = torch.randint(0, 256, real.shape, dtype=torch.uint8, generator=generator)
        return {
            "classifier_accuracy": share(self.predicted == self.test.labels),
            "floor": self._distribution(judge(self.classifier, real)[1]),
            "noise": self._distribution(judge(self.classifier, noise)[1]),
            "test_images": len(self.test),
        }

    def _distribution(self, features: Tensor) -> dict[str, Any]:
        """Frechet distance to all test images; precision and recall against as many of them as there are samples."""
        generator = torch.Generator().manual_seed(0)
        again = [torch.randint(len(features), (len(features),), generator=generator) for _ in range(10)]
        spread = torch.tensor([frechet_distance(features[rows], self.features) for rows in again]).std().item()
        real = self.features[torch.randperm(len(self.features), generator=generator)[: len(features)]]
        return {
            "frechet": frechet_distance(features, self.features),
            "frechet_bootstrap_deviation": spread,
            "precision": share(coverage(features, real)),
            "recall": share(coverage(real, features)),
            "n": len(features),
        }

    def memorisation(self) -> dict[str, Any]:
        """Distances to the nearest training image: of the prior's samples, and of as many test images."""
        images = torch.from_numpy(self.kept["prior: images"]).permute(0, 3, 1, 2)
        _, features = judge(self.classifier, images)
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(self.test), generator=generator)[: len(images)]
        _, of_train = judge(self.classifier, self.train.images)
        spaces = {
            "pixels": (flat(images), flat(self.test.images[chosen]), flat(self.train.images)),
            "features": (features, self.features[chosen], of_train),
        }
        report = {}
        for name, (sampled, real, train) in spaces.items():
            (ours, rows), (theirs, _) = nearest(sampled, train), nearest(real, train)
            low = theirs.quantile(0.01)
            report[name] = {
                "samples_median": ours.median().item(),
                "test_median": theirs.median().item(),
                "samples_below_test_1st_percentile": share((ours < low).flatten()),
            }
            if name == "pixels":
                closest = ours[:, 0].argsort()[:8]
                pairs = (images[closest], self.train.images[rows[closest, 0]])
                titles = ("the samples closest to a training image", "the training images")
                self.pictures["memorisation"] = captioned_grid(
                    [(t, p.permute(0, 2, 3, 1).numpy()) for t, p in zip(titles, pairs, strict=True)]
                )
        return report

    def denoising(self) -> None:
        captions = list(self.test.class_captions[:3])
        drawn = self.pipeline(captions, seed=self.seed, trajectory=True, **asdict(self.sampling))
        self.pictures["strip"] = denoising_strip(captions, drawn.trajectory, 1)

    # -- drawing ----------------------------------------------------------------------------------------------------

    def _rows_of(self, label: int, measure: int = 0, code: int | None = None) -> Tensor:
        """The validation images of a class, and of an attribute. Raises UserError if there are none."""
        chosen = self.validation.labels == label
        if code is not None:
            chosen = chosen & (self.validation.codes[:, measure] == code)
        if not chosen.any():
            raise UserError(f"{self.validation.name} lacks images of {self.test.classes[label]}; raise --data.limit")
        return chosen.nonzero()[:, 0]

    def draw(
        self, way: str, captions: list[str], n: int, sources: Sequence[Tensor] = ()
    ) -> tuple[np.ndarray, Tensor | None]:
        """n images a caption (N, H, W, C), and the embeddings that drove the decoder; image i of all has seed + i.

        `sources` are the validation images whose embeddings stand for each caption where true ones drive the decoder.
        """
        sampling, text = asdict(self.sampling), [caption for caption in captions for _ in range(n)]
        embeddings, seeds = None, list(range(self.seed, self.seed + len(text)))
        if way == "true embedding":
            embeddings = self.embedded_validation.images[torch.cat([_first(rows, n) for rows in sources])]
        elif way == "prior":
            embeddings = self.pipeline.embed(text, 1, seeds, **sampling).cpu()
        elif way == "text embedding":
            embeddings = self.pipeline.encode_text(text).cpu()
        elif way == "nothing":
            text = [""] * len(text)
        return self.pipeline.decode(embeddings, text, seeds, **sampling), embeddings


def _first(rows: Tensor, n: int) -> Tensor:
    """The first n rows; again from the start where there are fewer."""
    return rows[torch.arange(n) % len(rows)]


def flat(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float (N, C H W) in 0 .. 1."""
    return images.flatten(1).float() / 255


def inception_fid(generated: np.ndarray, real: Tensor, device: torch.device) -> dict[str, Any]:
    """Standard FID by torch-fidelity, where it is installed and its Inception weights are on this machine.

    Otherwise {"missing": what}: nothing is downloaded. The images are uint8 (N, H, W, C) and (M, C, H, W).
    """
    try:
        from torch_fidelity import calculate_metrics
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        return {"missing": "torch-fidelity is not installed"}
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if not weights.is_file():
        return {"missing": f"torch-fidelity's weights are not at {weights}"}
    first, second = (
        Colour(images.expand(-1, 3, -1, -1)) for images in (torch.from_numpy(generated).permute(0, 3, 1, 2), real)
    )
    figures = calculate_metrics(
        input1=first, input2=second, fid=True, cuda=device.type == "cuda", verbose=False, save_cpu_ram=True
    )
    return {"value": figures["frechet_inception_distance"], "n": len(generated)}


class Colour(torch.utils.data.Dataset):
    """Images uint8 (N, 3, H, W) one by one, as torch-fidelity takes them."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        return self.images[row]
