"""Train the fast decoder: a copy of the pipeline's decoder that learns to draw an image in one to four network calls.

    python -m stages.train fast_decoder --out checkpoints/run          # after train_decoder.py

The decoder is its teacher, and stays in the pipeline for edits. stages/distillation.py has the methods.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor, nn

from stages.batches import StepDraw
from stages.decoder import DecoderBatch, DecoderBatches, DecoderStage, draw_preview
from stages.distillation import (
    ConsistencyObjective,
    FastDecoderBatch,
    Method,
    PathObjective,
    clean_images,
    levels_at,
    saturated_huber,
)
from stages.inputs import Inputs
from stages.run_options import FrozenCLIPRun, Shapes, noise_level_conflicts
from unclip.decoder import DiffusionDecoderConfig
from unclip.decoder.consistency_decoder import ConsistencyDecoder
from unclip.diffusion.process import NoiseLevels, Process
from unclip.fields import bounded, from_dict
from unclip.registry import find_kind, resolve
from unclip.settings import DecoderSettings, FastDecoderSettings
from unclip.store.parts import load_part

READ_BY: dict[str, Method] = {"points": "path", "log_sigma": "tuning"}
"""Options that one method alone reads."""


@dataclass(frozen=True)
class FastDecoderRun(FrozenCLIPRun):
    kind: str = bounded("consistency", affects_weights=False)
    """Kind of the fast decoder, of those in unclip/registry.py."""
    method: Method = "path"
    """How it learns: path, distillation or tuning; see stages/distillation.py."""
    levels: int = bounded(16, 4, 1000)
    """Noise levels of the teacher's path, or of the distillation."""
    points: int = bounded(4, 1, 64)
    """Noised images on each path of the teacher at which the student answers; the first is pure noise."""
    drop_image: float = bounded(0.1, 0, 0.99)
    """Share of the image embeddings that are replaced by the learned null, so that captions alone can be drawn."""
    drop_text: float = bounded(0.2, 0, 0.99)
    """Share of the captions that are replaced by the learned null."""
    embedding_noise: float = bounded(0.05, 0, 2)
    """Deviation of the noise on the scaled image embeddings, so that the decoder forgives the prior's errors."""
    log_sigma: tuple[float, float] = bounded((-1.1, 2.0), -10, 10)
    """Mean and deviation of the logarithm of the noise over the signal in tuning (Geng et al. 2024, appendix A)."""
    evaluate_on: int = bounded(250, 1, 10**7)
    """Validation images that the distance to the teacher is taken on."""
    sampling: FastDecoderSettings = bounded(FastDecoderSettings(), affects_weights=False)
    """How the trained decoder is sampled; noted in the pipeline's model_index.json."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from noise_level_conflicts(self)
        preset = resolve(find_kind("fast_decoder", self.kind).presets)[self.preset]
        for name, method in READ_BY.items():
            if method != self.method and getattr(self, name) != getattr(preset, name):
                yield name, f"be left out, as the method {self.method} does not read it (only {method} does)"


FURTHER_CALLS = (0.1, 4.0)
"""Noise over signal where calls after the first may start: see `FastDecoderSettings.levels`."""


class FastDecoderStage:
    """Gives the loop a method's distance, and on validation images the distance to what the teacher draws."""

    name = "fast_decoder"
    best_is = ("distance", "lowest")

    def __init__(self, run: FastDecoderRun, model: ConsistencyDecoder, inputs: Inputs, device: torch.device):
        self.run = run
        self.model = model
        self.inputs = inputs
        self.device = device
        self.batches = DecoderBatches(run, model, inputs)
        self.process = model.process
        self.size = len(inputs.train)
        teacher = copy.deepcopy(model).requires_grad_(False).eval()
        settings = teacher_settings(inputs)
        self.paths = PathObjective(model, teacher, settings, run.levels)
        self.objective: nn.Module = self.paths
        if run.method != "path":
            self.objective = ConsistencyObjective(model, teacher if run.method == "distillation" else None, settings)

    @staticmethod
    def build_model(run: FastDecoderRun, shapes: Shapes) -> ConsistencyDecoder:
        """A model of the decoder's config; of its preset's where there is no decoder."""
        if shapes.decoder:
            return ConsistencyDecoder(from_dict(DiffusionDecoderConfig, shapes.decoder, "the decoder's config.json"))
        preset = resolve(find_kind("decoder", "diffusion").presets)[run.preset]
        return ConsistencyDecoder(DecoderStage.build_model(preset, shapes).config)

    def fit_buffers(self) -> None:
        """Take the teacher's weights."""
        weights = load_part(self.run.out / "decoder")[0].state_dict()
        self.paths.teacher.load_state_dict(weights)
        self.model.load_state_dict(weights)

    def batch(self, draw: StepDraw) -> FastDecoderBatch:
        images = self.batches.draw(draw)
        count = len(draw.rows)
        if self.run.method == "path":
            places = draw.share(self._draw_places(count, draw.generator))
            levels = levels_at(places, self.paths.levels, self.process)
            return FastDecoderBatch(images, places=places, levels=levels)
        if self.run.method == "distillation":
            places = draw.share(torch.randint(self.run.levels, (count,), generator=draw.generator))
            upper, lower = (levels_at(place, self.paths.levels, self.process) for place in (places, places + 1))
            return FastDecoderBatch(replace(images, levels=upper), lower)
        progress = draw.step / self.run.train.steps
        return FastDecoderBatch(images, closer_levels(images.levels, self.process, progress))

    def _draw_places(self, count: int, generator: torch.Generator) -> Tensor:
        """Places (B, K) on the teacher's path: its beginning, and others from where further calls may start."""
        low, high = FURTHER_CALLS
        inside = [i for i, level in enumerate(self.paths.levels) if low <= level.sigma / level.alpha <= high]
        chosen = torch.randint(len(inside), (count, self.run.points - 1), generator=generator)
        return torch.cat([torch.zeros(count, 1, dtype=torch.long), torch.tensor(inside)[chosen]], dim=1)

    def figures(self, batch: FastDecoderBatch) -> dict[str, float | Tensor]:
        return {}

    def evaluate(self, model: ConsistencyDecoder) -> dict[str, float]:
        """Distances of the model's answers to the teacher's images: from pure noise, from half noise, and the mean."""
        images, noised, ends = self.validation_paths
        condition = model.condition(images.embeddings, images.drop, images.text)
        half = min(range(self.run.levels), key=lambda i: abs(self.paths.levels[i].sigma - self.paths.levels[i].alpha))
        figures = {}
        for name, place in (("distance_first", 0), ("distance_half", half)):
            places = torch.full((len(images),), place, device=self.device)
            levels = levels_at(places, self.paths.levels, self.process)
            answers = clean_images(model, noised[place], levels, condition)
            figures[name] = saturated_huber(answers, ends).mean().item()
        return {"distance": sum(figures.values()) / 2, **figures}

    @cached_property
    def validation_paths(self) -> tuple[DecoderBatch, Tensor, Tensor]:
        """Validation images with their conditions, and the teacher's paths for them: see `PathObjective.draw_paths`."""
        rows = torch.arange(min(self.run.evaluate_on, len(self.inputs.validation)))
        images = self.batches.draw_validation(rows, torch.Generator().manual_seed(0)).to(self.device)
        paths = self.paths.to(self.device)
        return images, *paths.draw_paths(images.noise, images.embeddings, images.drop, images.text)

    def preview(self, model: ConsistencyDecoder) -> Image.Image:
        return draw_preview(model, self.inputs.validation, self.run.sampling, self.device)


def closer_levels(upper: NoiseLevels, process: Process, progress: float) -> NoiseLevels:
    """A lower noise level for each, the closer the further the training is; at its start the clean one.

    With s = sigma / alpha and the progress from 0 to 1, s_lower / s = 1 - (1 + 8 / (1 + exp(s))) / 2^(8 progress), but
    at least 0 (Geng et al. 2024, section 4.2).
    """
    ratio = upper.sigma.double() / upper.alpha.double()
    share = 1 - (1 + 8 * torch.sigmoid(-ratio)) / 2 ** math.ceil(8 * progress)
    times = process.times_at((ratio * share).clamp(min=1e-9))
    times = torch.where(share > 0, times, 0.0)
    alpha, sigma = process.alpha_sigma(times)
    return NoiseLevels(process.network_time(times).float(), alpha.float(), sigma.float())


def teacher_settings(inputs: Inputs) -> DecoderSettings:
    """How the teacher draws: as its pipeline says, guidance included."""
    return from_dict(DecoderSettings, inputs.decoder.sampling if inputs.decoder else {}, "the decoder's config.json")
