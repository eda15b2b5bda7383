"""How a pipeline draws images from their conditions: in batches, reranked, watched, and on through its last parts."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unclip.clip.text_features import TextFeatures
from unclip.decoder.reranking import draw_closest_images
from unclip.devices import precision_of, wide
from unclip.diffusion.process import Level
from unclip.errors import UserError
from unclip.images import to_uint8
from unclip.interfaces import HasReranker, Prior
from unclip.prior.reranking import Reranker
from unclip.redrawing import Drawn, redraw_failed
from unclip.settings import PriorSettings, Sampling
from unclip.trajectory import Moment, StopDrawing

if TYPE_CHECKING:
    from unclip.pipeline import UnCLIP

OnStep = Callable[[Moment], None]


class Conditions(NamedTuple):
    """All that N images are drawn from."""

    embeddings: Tensor | None
    """Unit image embeddings (N, D), or None to leave them out."""
    text: TextFeatures
    seeds: list[int]
    noise: Tensor | None = None
    """(N, C, H, W) to start from, one candidate each; None for that of the seeds."""
    from_prior: bool = False
    """Whether the prior drew the embeddings for the captions, and may draw others."""


def drawing_part(pipe: "UnCLIP", sampling: Sampling) -> tuple[Any, Any]:
    """The part of a pipeline that draws the images, and its settings."""
    if pipe.fast_decoder and sampling.fast_decoder.steps:
        return pipe.fast_decoder, sampling.fast_decoder
    return pipe.decoder, sampling.decoder


def check_guided(text: TextFeatures, *settings: Any) -> None:
    """Raise UserError for negative captions if none of the parts with these settings is guided."""
    if text.negative is not None and all(getattr(part, "guidance", 1) == 1 for part in settings):
        raise UserError("negative is what guidance leads away from, and there is none; add guidance=3")


class Batch(NamedTuple):
    """Images that were drawn at once, and what they were drawn from."""

    images: Tensor
    """(B, C, H, W) in [-1, 1]."""
    noise: Tensor
    """(B, C, H, W)."""
    embeddings: Tensor | None
    """(B, D)."""


def draw_arrays(
    pipe: "UnCLIP", conditions: Conditions, sampling: Sampling, on_step: OnStep | None
) -> tuple[np.ndarray, Tensor, Tensor | None]:
    """Draw images uint8 (N, H, W, C). Returns also the noise (N, C, H, W) and embeddings (N, D) that they came from."""
    drawn = draw_batches(pipe, conditions, sampling, on_step)
    images, noise, embeddings = zip(*((as_array(batch.images), *batch[1:]) for batch in drawn), strict=True)
    return np.concatenate(images), torch.cat(noise), None if conditions.embeddings is None else torch.cat(embeddings)


def draw_batches(
    pipe: "UnCLIP", conditions: Conditions, sampling: Sampling, on_step: OnStep | None = None
) -> Iterator[Batch]:
    """Yield batches of images, until on_step raises `StopDrawing`; the last one's are then as they were predicted."""
    embeddings, text, seeds, noise, from_prior = conditions
    decoder, settings = drawing_part(pipe, sampling)
    is_stopped = False
    reranks = noise is None and embeddings is not None and settings.num_candidates > 1
    reranker = image_reranker(pipe.prior, sampling.prior) if from_prior else None
    size = max(1, sampling.batch_size // (settings.num_candidates if reranks else 1))  # candidates are one batch
    for part in batches(len(seeds), size):
        part_embeddings = None if embeddings is None else embeddings[part].to(pipe.device)
        part_text = text[part]
        part_seeds = seeds[part]
        if reranker:
            first = (part_embeddings, part_text, part_seeds)
            drawn, part_embeddings, part_seeds = draw_passing(pipe, reranker, *first, sampling)
        elif reranks:
            drawn, _, part_seeds = draw_closest(pipe, part_embeddings, part_text, part_seeds, sampling)
        start = decoder.draw_noise(part_seeds) if noise is None else noise[part]
        if on_step or not (reranker or reranks):  # a watched image is drawn once more, when it is known which is kept
            tell = on_step and as_moments(on_step, range(len(seeds))[part], settings.steps)
            try:
                drawn = decoder.draw_images(part_embeddings, part_text, part_seeds, settings, start, tell)
            except StopDrawing as stop:
                drawn = stop.predicted
                is_stopped = True
        images = process_images(pipe, drawn, part_embeddings, part_text, part_seeds, sampling)
        yield Batch(images, start, part_embeddings)
        if is_stopped:
            return


def image_reranker(prior: Prior, settings: PriorSettings) -> Reranker | None:
    """The reranker that tells which images are drawn anew; None without classes, or if none is to be drawn anew."""
    if settings.redraws and isinstance(prior, HasReranker) and len(prior.reranker.class_embeddings):
        return prior.reranker
    return None


def draw_closest(pipe: "UnCLIP", embeddings: Tensor, text: TextFeatures, seeds: list[int], sampling: Sampling) -> Drawn:
    """Draw images (B, C, H, W) as the settings say: of several candidates those closest to their embeddings."""
    decoder, settings = drawing_part(pipe, sampling)
    if settings.num_candidates == 1:
        return Drawn(decoder.draw_images(embeddings, text, seeds, settings), embeddings, seeds)
    drawing = (embeddings, text, seeds, settings, sampling.batch_size)
    images, seeds = draw_closest_images(decoder, lambda images: encode_drawn(pipe, images), *drawing)
    return Drawn(images, embeddings, seeds)


def draw_passing(
    pipe: "UnCLIP", reranker: Reranker, embeddings: Tensor, text: TextFeatures, seeds: list[int], sampling: Sampling
) -> Drawn:
    """Draw images (B, C, H, W), those anew that CLIP takes for another class than their captions'."""

    def draw(text: TextFeatures, seeds: list[int]) -> Drawn:
        return draw_closest(pipe, pipe.draw_embeddings(text, seeds, sampling), text, seeds, sampling)

    def judge(images: Tensor, text: TextFeatures) -> Tensor:
        return reranker.image_probabilities(encode_drawn(pipe, images), text.embedding, text.empty)

    first = draw_closest(pipe, embeddings, text, seeds, sampling)
    return redraw_failed(first, text, seeds, sampling.prior, draw, judge)


def process_images(
    pipe: "UnCLIP",
    images: Tensor,
    embeddings: Tensor | None,
    text: TextFeatures,
    seeds: list[int],
    sampling: Sampling,
) -> Tensor:
    """The decoder's images (B, C, H, W) in [-1, 1] as the pipeline's last parts, such as an upsampler, leave them."""
    for name, image_part in pipe.image_parts.items():
        images = image_part.process_images(images, embeddings, text, seeds, getattr(sampling, name, None))
    return images


def encode_drawn(pipe: "UnCLIP", images: Tensor) -> Tensor:
    """CLIP's unit embeddings (B, D) of drawn images (B, C, H, W) in [-1, 1], rounded to whole grey levels."""
    pixels = to_uint8(images).contiguous(memory_format=torch.channels_last)
    with precision_of(pipe.clip):
        return wide(pipe.clip.encode_image(pipe.preprocess(pixels)))


def batches(n: int, size: int) -> list[slice]:
    """Slices of at most `size` rows that cover n."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def as_moments(on_step: OnStep, rows: range, steps: int) -> Callable[[Level, Tensor, Tensor], None]:
    """A decoder's on_step(level, x_t, x0) that calls `on_step` with a `Moment` for each."""
    count = 0

    def tell(level: Level, x: Tensor, x0: Tensor) -> None:
        nonlocal count
        try:
            on_step(Moment(rows, count, steps, level.t, as_array(x), as_array(x0)))
        except StopDrawing as stop:
            stop.predicted = x0
            raise
        count += 1

    return tell


def as_array(images: Tensor) -> np.ndarray:
    """Float (B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C). Raises UserError for numbers that are not finite."""
    if not images.isfinite().all():  # they would be black
        raise UserError("the drawn pixels are not finite: the weights or the settings are out of range; train anew")
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
