"""The interface of an evaluator: what it is given, and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from data.dataset import CaptionedImages
from stages.embed import EmbeddedImages
from stages.evaluation.reference import Reference
from stages.evaluation.samples import Samples, draw_samples
from unclip import UnCLIP


@dataclass(frozen=True)
class Section:
    """The results of one evaluator.

    A proportion or a mean among the figures is {"value", "low", "high", "n"}, with its 95% interval.
    """

    figures: Any = None
    """Numbers for evaluation.json, in dictionaries and lists."""
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    """Pictures for evaluation.md, by their names without .png."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays for evaluation.npz: the images behind the figures."""


@dataclass(frozen=True)
class LargeImages:
    """The real images at the size that an upsampler draws."""

    test: CaptionedImages
    """The images that samples are compared with, in the order of the test images."""
    train: CaptionedImages


@dataclass(frozen=True)
class EvaluationContext:
    """The pipeline, the real images, and the settings that every evaluator shares."""

    pipe: UnCLIP
    reference: Reference
    """The test images as the judge sees them. Samples are compared with these."""
    embedded_test: EmbeddedImages
    """The test images with CLIP's embeddings."""
    embedded_drivers: EmbeddedImages
    """Real images whose embeddings drive the decoder in place of the prior's. They are the validation images; the test
    images only where no others have the same captions."""
    train: CaptionedImages
    """All training images. They have classes only if a classifier judges."""
    samples_per_caption: int
    seed: int
    sweep_samples: int = 0
    """Images to draw for each setting of the sweep; 0 for no sweep."""
    large: LargeImages | None = None
    """None for a pipeline without an upsampler."""
    inception: Path | None = None
    """File of the standard Inception weights."""
    clip_score: Path | None = None
    """Path of a CLIP for the CLIP score."""

    @property
    def sample_count(self) -> int:
        return self.samples_per_caption * self.reference.classes

    @property
    def captions(self) -> Sequence[str]:
        """The plain caption of each class."""
        return self.reference.data.class_captions

    @property
    def draws_fast(self) -> bool:
        """Whether a fast decoder draws."""
        return self.pipe.fast_decoder is not None and self.pipe.sampling.fast_decoder.steps > 0

    @cached_property
    def caption_embeddings(self) -> Tensor:
        """CLIP's text embeddings of the plain captions (classes, D)."""
        return self.pipe.encode_text(self.captions).cpu()

    @cached_property
    def pipeline_samples(self) -> Samples:
        """The pipeline's own samples of the plain captions, as `sample.py` would draw them; drawn once for all."""
        return self.draw_samples("prior", self.captions, self.samples_per_caption)

    def draw_samples(
        self, driver: str, captions: Sequence[str], n: int, true_embeddings: Tensor | None = None, **settings
    ) -> Samples:
        """Draw n images per caption at the size of the real images; see `stages.evaluation.samples.draw_samples`."""
        size = self.reference.data.image_size
        return draw_samples(self.pipe, driver, captions, n, self.seed, size, true_embeddings, **settings)


@dataclass(frozen=True)
class Evaluator:
    """Measures one aspect of a pipeline.

    To add one, write its function in a file of its own, and a row in `stages.evaluation.evaluate.EVALUATORS`. Its
    figures then stand in evaluation.json under the row's name, and in evaluation.md as a plain table unless
    `stages.evaluation.report` formats them.
    """

    run: Callable[[EvaluationContext], Section]
    """Measure, and return the results."""
    needs: str = ""
    """Its needs beyond a pipeline and captioned images, in words."""
    can_run: Callable[[UnCLIP, CaptionedImages, Any], bool] = lambda pipe, test, options: True
    """Whether the pipeline, the test images and the options of the evaluation meet the need."""
