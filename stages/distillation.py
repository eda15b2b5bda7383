"""Objectives that make a fast decoder out of a decoder, its teacher: the same network answers with one clean image.

    path           The teacher draws an image as it always does. At the noised images on its way the student shall
                   answer with the finished one (Luhman & Luhman 2021, arXiv 2101.02388, at any level).
    distillation   The student shall answer as it does one step of the teacher further (Song et al. 2023, arXiv
                   2303.01469, algorithm 2); the step is Heun's, guided as the teacher's pipeline says.
    tuning         The student shall answer as it does for a little less of the same noise; there is no teacher (Geng et
                   al. 2024, arXiv 2406.14548).

A network that predicts v answers f(x, 0) = x at the clean level, as consistency models must.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stages.decoder import DecoderBatch
from unclip.clip import TextFeatures
from unclip.decoder import DiffusionDecoder
from unclip.decoder.condition import Condition
from unclip.diffusion.guidance import watch
from unclip.diffusion.prediction import add_noise, x0_from_output
from unclip.diffusion.process import Level, NoiseLevels, Process
from unclip.diffusion.samplers import dpmpp
from unclip.diffusion.spacing import karras_levels
from unclip.images import to_float
from unclip.layers import at_least_float32
from unclip.settings import DecoderSettings
from unclip.tensor_batch import TensorBatch

Method = Literal["path", "distillation", "tuning"]
HUBER = 0.03
"""Width of the loss's quadratic part, where pixels lie in -1 .. 1 (Song & Dhariwal 2023, arXiv 2310.14189, eq. 7)."""


def levels_at(places: Tensor, levels: list[Level], process: Process) -> NoiseLevels:
    """The entries of a list of levels at places (B, ...)."""
    columns = torch.tensor(levels, dtype=torch.float64, device=places.device)[places]  # (B, ..., 3)
    t, alpha, sigma = columns.float().unbind(dim=-1)
    return NoiseLevels(process.network_time(t), alpha, sigma)


def coefficients(levels: NoiseLevels) -> tuple[Tensor, Tensor]:
    """alpha and sigma (B, 1, 1, 1)."""
    return levels.alpha[:, None, None, None], levels.sigma[:, None, None, None]


def clean_images(decoder: DiffusionDecoder, noised: Tensor, levels: NoiseLevels, condition: Condition) -> Tensor:
    """The clean images (B, C, H, W), not clipped, that a decoder's network predicts for noised images at levels."""
    output = at_least_float32(decoder.network(noised, levels.time, condition))
    return x0_from_output(decoder.config.diffusion.prediction, output, noised, *coefficients(levels))


def saturated_huber(predicted: Tensor, target: Tensor) -> Tensor:
    """Pseudo-Huber distances (B,) of predicted images to images in -1 .. 1.

    Where the target is black or white, the prediction may lie beyond it, as drawing clips it. Otherwise half of the
    black pixels would come out too bright.
    """
    beyond = ((target <= -1) & (predicted < target)) | ((target >= 1) & (predicted > target))
    difference = torch.where(beyond, 0.0, predicted - target)
    return ((difference.square() + HUBER**2).sqrt() - HUBER).mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class FastDecoderBatch(TensorBatch):
    images: DecoderBatch
    """Images, their conditions and their noise, at a noise level each."""
    lower: NoiseLevels | None = None
    """A lower level for each, where the method compares two."""
    places: Tensor | None = None
    """(B, K), the steps of the teacher's path at which the student answers, where the method follows one."""
    levels: NoiseLevels | None = None
    """(B, K), the noise levels of those steps."""


class PathObjective(nn.Module):
    """Distance of the student's answers, at noised images on the teacher's paths, to the images where the paths end."""

    def __init__(self, student: DiffusionDecoder, teacher: DiffusionDecoder, settings: DecoderSettings, steps: int):
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.settings = settings
        self.levels = karras_levels(teacher.process, steps)

    def forward(self, batch: FastDecoderBatch) -> Tensor:
        images = batch.images
        noised, ends = self.draw_paths(images.noise, images.embeddings, images.drop, images.text)
        count = batch.places.shape[1]
        places = batch.places.T.flatten()  # (K B,)
        rows = torch.arange(len(images), device=places.device).repeat(count)
        condition = self.student.condition(images.embeddings, images.drop, images.text)
        condition = Condition(*(part[rows] for part in condition))
        levels = batch.levels.map(lambda column: column.T.flatten())
        return saturated_huber(clean_images(self.student, noised[places, rows], levels, condition), ends[rows]).mean()

    @torch.no_grad()
    def draw_paths(self, noise: Tensor, embeddings: Tensor, drop: Tensor, text: TextFeatures) -> tuple[Tensor, Tensor]:
        """The teacher's paths from noise (B, C, H, W): noised images (S, B, C, H, W) at each level, and the ends."""
        noised = []

        def record(level: Level, x: Tensor, x0: Tensor) -> None:
            noised.append(x)

        denoise = watch(self.teacher.denoiser(embeddings, text, self.settings, drop), record)
        ends = dpmpp(denoise, noise, self.levels)
        return torch.stack(noised), ends


class ConsistencyObjective(nn.Module):
    """Distance of the student's answers at two neighbouring noise levels, of which the lower one is the target.

    Args:
        teacher: finds the lower noised image by a step of Heun from the upper one. Without it the real image gets less
            of the same noise, and the distance is divided by the difference in noise.
        settings: the teacher's guidance.
    """

    def __init__(self, student: DiffusionDecoder, teacher: DiffusionDecoder | None, settings: DecoderSettings):
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.settings = settings

    def forward(self, batch: FastDecoderBatch) -> Tensor:
        images = batch.images
        real = to_float(images.pixels)
        noised = add_noise(real, images.noise, *coefficients(images.levels))
        condition = self.student.condition(images.embeddings, images.drop, images.text)
        with torch.no_grad():
            target = self.target(noised, real, batch, condition)
        distance = saturated_huber(clean_images(self.student, noised, images.levels, condition), target)
        if self.teacher is None:
            difference = images.levels.sigma / images.levels.alpha - batch.lower.sigma / batch.lower.alpha
            distance = distance / difference.clamp(min=1e-3)  # the table of times may hold nothing in between
        return distance.mean()

    def target(self, noised: Tensor, real: Tensor, batch: FastDecoderBatch, condition: Condition) -> Tensor:
        """The student's answers (B, C, H, W) at the lower level, in [-1, 1]; at the clean one the image itself."""
        clean = real
        if self.teacher is None:
            lower = add_noise(real, batch.images.noise, *coefficients(batch.lower))
        else:
            lower, clean = self.heun_step(noised, batch)
        answer = clean_images(self.student, lower, batch.lower, condition)
        is_clean = (batch.lower.sigma == 0)[:, None, None, None]
        return torch.where(is_clean, clean, answer).clamp(-1, 1)

    def heun_step(self, noised: Tensor, batch: FastDecoderBatch) -> tuple[Tensor, Tensor]:
        """The teacher's next noised images, and its clean images at the upper level.

        With s = sigma / alpha and x / alpha, its path is dx = (x - x0) / s ds (Karras et al. 2022, algorithm 1).
        """
        images = batch.images
        alpha, sigma = coefficients(images.levels)
        lower_alpha, lower_sigma = coefficients(batch.lower)
        clean = self.teacher_images(noised, images.levels, images)
        slope = (noised / alpha - clean) / (sigma / alpha)
        length = lower_sigma / lower_alpha - sigma / alpha
        guess = lower_alpha * (noised / alpha + length * slope)
        second = self.teacher_images(guess, batch.lower, images)
        lower_slope = (guess / lower_alpha - second) / (lower_sigma / lower_alpha).clamp(min=1e-6)
        return lower_alpha * (noised / alpha + length * (slope + lower_slope) / 2), clean

    def teacher_images(self, noised: Tensor, levels: NoiseLevels, images: DecoderBatch) -> Tensor:
        """The teacher's clean images (B, C, H, W) in [-1, 1], guided at the levels inside its interval."""
        condition = self.teacher.condition(images.embeddings, images.drop, images.text)
        clean = clean_images(self.teacher, noised, levels, condition)
        if self.settings.guidance != 1:
            null = self.teacher.condition(images.embeddings, torch.ones_like(images.drop), images.text.null())
            unconditional = clean_images(self.teacher, noised, levels, null)
            low, high = map(self.teacher.process.time_at_share, self.settings.guidance_interval)
            ends = torch.tensor([low, high], dtype=torch.float64)
            low, high = self.teacher.process.network_time(ends).float().tolist()
            is_inside = (low <= levels.time) & (levels.time <= high)
            guidance = torch.where(is_inside, self.settings.guidance, 1.0)[:, None, None, None]
            clean = torch.lerp(unconditional, clean, guidance)
        return clean.clamp(-1, 1)
