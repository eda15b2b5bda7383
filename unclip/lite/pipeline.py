"""An exported pipeline: caption -> text embedding -> image embedding -> pixels, without PyTorch."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unclip.errors import UserError
from unclip.fields import from_dict
from unclip.lite.captions import CaptionEncoder, Features
from unclip.lite.description import DESCRIPTION, read_description
from unclip.lite.levels import CLEAN, Level, Process
from unclip.lite.networks import Networks
from unclip.lite.noise import DECODER_STREAM, PRIOR_STREAM, UPSAMPLER_STREAM, RowNoise
from unclip.lite.redrawing import Drawn, redraw_failed
from unclip.lite.reranking import choose_candidates, image_probabilities, keeps_first
from unclip.lite.samplers import SAMPLERS, Denoise, consistency, dpmpp, x0_from_output
from unclip.settings import (
    DecoderSettings,
    FastDecoderSettings,
    PriorSettings,
    Sampling,
    UpsamplerSettings,
    later_seeds,
    seed_list,
)

PURE_NOISE = 1000
"""The time that a one-pass prior's network is told, as in `unclip.prior.one_pass_prior`."""


@dataclass
class LiteOutput:
    """N images, the n images of each caption in a row."""

    images: np.ndarray
    """uint8 (N, H, W, C)."""
    captions: list[str]
    seeds: list[int]
    embeddings: np.ndarray
    """Image embeddings that the prior drew, unit norm, (N, D)."""


@dataclass
class Part:
    """A part that diffuses, as lite.json describes it."""

    kind: str
    prediction: str
    process: Process

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Part":
        table = values["alphas_cumprod"]
        return cls(values["kind"], values["prediction"], Process(None if table is None else np.array(table)))

    def denoiser(self, network: Any, clip: float | None = None) -> Denoise:
        """denoise(x, level) for a network(x, times)."""

        def denoise(x: np.ndarray, level: Level) -> np.ndarray:
            times = np.full(len(x), level.network_time, dtype=np.float32)
            x0 = x0_from_output(self.prediction, network(x, times), x, level)
            return x0 if clip is None else np.clip(x0, -clip, clip)

        return denoise


class Lite:
    """An exported pipeline. The same seed draws the image of `unclip.UnCLIP`, to a grey level here and there."""

    def __init__(self, folder: str | Path, threads: int = 0):
        """Open a folder that `unclip export CHECKPOINT --to onnx` wrote.

        Raises UserError if there is none, or if it is damaged.
        """
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        self.networks = Networks(self.folder, threads)
        self.encode_captions = CaptionEncoder(self.folder, self.description, self.networks)
        self.sampling = from_dict(Sampling, self.description["sampling"], str(self.folder / DESCRIPTION))
        self.parts = {
            name: Part.of(values)
            for name, values in self.description.items()
            if isinstance(values, dict) and "alphas_cumprod" in values
        }
        statistics = self.description["prior"]
        self.mean, self.std, self.axes, self.classes = (
            np.array(statistics[name], dtype=np.float32) for name in ("mean", "std", "axes", "class_embeddings")
        )
        self.logit_scale: float = statistics["logit_scale"]
        self.image_shape: tuple[int, ...] = tuple(self.description["image_shape"])

    def __call__(
        self, captions: str | Sequence[str], n: int = 1, seed: int | Sequence[int] = 0, **settings: Any
    ) -> LiteOutput:
        """Draw n images of each caption; image i of a caption uses seed + i. See `unclip.UnCLIP.__call__`."""
        texts = [captions] if isinstance(captions, str) else list(captions)
        if not texts or n < 1:
            raise UserError("give at least one caption, and n of at least 1")
        seeds = seed_list(seed, n) * len(texts)
        texts = [text for text in texts for _ in range(n)]
        sampling = self.sampling.for_drawing(**settings)
        sampling.prior.check_read_by(None, "prior")  # no kind that is exported reads what few read
        features = self.encode_captions(texts)
        embeddings = []
        images = []
        for start in range(0, len(texts), sampling.batch_size):
            rows = slice(start, start + sampling.batch_size)
            drawn = self._draw_passing(features[rows], seeds[rows], sampling)
            embeddings.append(drawn.embeddings)
            images.append(self._finish(drawn, sampling))
        return LiteOutput(np.concatenate(images), texts, seeds, np.concatenate(embeddings))

    def encode_text(self, captions: Sequence[str]) -> np.ndarray:
        """CLIP's unit text embeddings (N, D)."""
        return self.encode_captions(captions).embedding

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """CLIP's unit image embeddings (N, D) of uint8 images (N, H, W, C) of the pipeline's own size."""
        channels, height, width = self.image_shape
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels):
            raise UserError(f"images are uint8 (N, {height}, {width}, {channels}), not {images.dtype} {images.shape}")
        [embeddings] = self.networks("image", images.transpose(0, 3, 1, 2).astype(np.float32))
        return embeddings

    def draw_embeddings(self, text: Features, seeds: Sequence[int], settings: PriorSettings) -> np.ndarray:
        """Draw one unit image embedding (N, D) for each of N captions; see `UnCLIP.draw_embeddings`."""
        if keeps_first(text.embedding, text.empty, self.classes, settings.threshold).all():
            settings = replace(settings, num_candidates=1)
        count = len(text)
        guides = settings.guidance != 1
        features = text.with_nulls() if guides else text
        centre, *prefix = self.networks(
            "prior_prefix", features.embedding, features.tokens, features.mask, features.empty
        )
        rows = np.tile(np.arange(count), settings.num_candidates)
        if guides:
            rows = np.concatenate([rows, rows + count])
        centre = centre[rows]
        prefix = [part[rows] for part in prefix]

        def network(x: np.ndarray, times: np.ndarray) -> np.ndarray:
            [output] = self.networks("prior_step", x, times, *prefix)
            return output

        is_at_once = self.description["prior"]["kind"] == "one_pass"

        def predict(x: np.ndarray, level: Level) -> np.ndarray:
            if is_at_once:
                return centre + network(x, np.full(len(x), PURE_NOISE, dtype=np.float32))
            return centre + self.parts["prior"].denoiser(network)(x - np.float32(level.alpha) * centre, level)

        def denoise(x: np.ndarray, level: Level) -> np.ndarray:
            x0 = predict(np.tile(x, (2, 1)) if guides else x, level)
            return interpolate(x0, settings.guidance) if guides else x0

        noises = [RowNoise(seeds, PRIOR_STREAM, i)(text.embedding.shape[1:]) for i in range(settings.num_candidates)]
        noise = np.concatenate(noises)
        if is_at_once:
            scaled = denoise(noise, CLEAN)
        else:
            scaled = dpmpp(denoise, noise, self.parts["prior"].process.spaced_levels(settings.spacing, settings.steps))
        unscaled = (scaled * self.std) @ self.axes.T + self.mean
        candidates = normalise(unscaled).reshape(settings.num_candidates, count, -1).swapaxes(0, 1)
        chosen = choose_candidates(candidates, text.embedding, self.classes, self.logit_scale, settings.threshold)
        return candidates[np.arange(count), np.where(text.empty, 0, chosen)]

    def draw_images(
        self, embeddings: np.ndarray, text: Features, seeds: Sequence[int], sampling: Sampling
    ) -> np.ndarray:
        """Draw uint8 images (N, H, W, C) from embeddings (N, D) and N captions: of several candidates the closest."""
        return self._finish(self._draw_closest(embeddings, text, seeds, sampling), sampling)

    def _draw_passing(self, text: Features, seeds: Sequence[int], sampling: Sampling) -> Drawn:
        """Draw an image of each of N captions; see `unclip.drawing.draw_passing`."""

        def draw(text: Features, seeds: Sequence[int]) -> Drawn:
            return self._draw_closest(self.draw_embeddings(text, seeds, sampling.prior), text, seeds, sampling)

        def judge(images: np.ndarray, text: Features) -> np.ndarray:
            embeddings = self.encode_image(as_uint8(images))
            return image_probabilities(embeddings, text.embedding, text.empty, self.classes, self.logit_scale)

        settings = sampling.prior if len(self.classes) else replace(sampling.prior, redraws=0)
        return redraw_failed(text, seeds, settings, draw, judge)

    def _draw_closest(self, embeddings: np.ndarray, text: Features, seeds: Sequence[int], sampling: Sampling) -> Drawn:
        """Draw images from embeddings (N, D) and N captions: of several candidates the closest."""
        fast = sampling.fast_decoder
        draw: Any = partial(self._draw_with_decoder, settings=sampling.decoder)
        num_candidates = sampling.decoder.num_candidates
        if fast.steps and "fast_decoder" in self.parts:
            draw = partial(self._draw_with_fast_decoder, settings=fast)
            num_candidates = fast.num_candidates
        candidates = []
        cosines = []
        candidate_seeds = []
        for i in range(num_candidates):
            candidate_seeds.append(later_seeds(seeds, i))
            candidates.append(draw(embeddings, text, candidate_seeds[-1]))
            if num_candidates > 1:
                cosines.append((self.encode_image(as_uint8(candidates[-1])) * embeddings).sum(axis=1))
        rows = np.arange(len(seeds))
        best = np.stack(cosines).argmax(axis=0) if cosines else np.zeros_like(rows)
        kept_seeds = np.array(candidate_seeds, dtype=np.int64)[best, rows]
        return Drawn(np.stack(candidates)[best, rows], embeddings, kept_seeds)

    def _finish(self, drawn: Drawn, sampling: Sampling) -> np.ndarray:
        """The images as uint8 (N, H, W, C), enlarged where there is an upsampler."""
        images = drawn.images
        if "upsampler" in self.parts and sampling.upsampler.upscale != "none":
            images = self._enlarge(images, drawn.embeddings, drawn.seeds.tolist(), sampling.upsampler)
        return as_uint8(images)

    def _draw_with_decoder(
        self, embeddings: np.ndarray, text: Features, seeds: Sequence[int], settings: DecoderSettings
    ) -> np.ndarray:
        noise = RowNoise(seeds, DECODER_STREAM)
        part = self.parts["decoder"]
        levels = part.process.spaced_levels(settings.spacing, settings.steps)
        denoise = self._decoder_denoiser("decoder", embeddings, text)
        if settings.guidance != 1:
            low, high = map(part.process.time_at_share, settings.guidance_interval)
            twice = np.concatenate([embeddings, embeddings])
            dropped = np.repeat([False, True], len(seeds))
            both = self._decoder_denoiser("decoder", twice, text.with_nulls(), dropped, settings.guidance)
            plain = denoise

            def denoise(x: np.ndarray, level: Level) -> np.ndarray:
                return both(x, level) if low <= level.t <= high else plain(x, level)

        options: dict[str, Any] = {"eta": settings.eta} if settings.sampler == "ddim" else {}
        sampler: Any = SAMPLERS[settings.sampler]
        return sampler(denoise, noise(self.image_shape), levels, noise, **options)

    def _draw_with_fast_decoder(
        self, embeddings: np.ndarray, text: Features, seeds: Sequence[int], settings: FastDecoderSettings
    ) -> np.ndarray:
        noise = RowNoise(seeds, DECODER_STREAM)
        levels = self.parts["fast_decoder"].process.consistency_levels(settings)
        denoise = self._decoder_denoiser("fast_decoder", embeddings, text)
        return consistency(denoise, noise(self.image_shape), levels, noise)

    def _enlarge(
        self, images: np.ndarray, embeddings: np.ndarray, seeds: Sequence[int], settings: UpsamplerSettings
    ) -> np.ndarray:
        """Enlarge images (N, C, H, W) in [-1, 1]; see `DiffusionUpsampler.process_images`."""
        factor = self.description["upsampler"]["factor"]
        channels, height, width = self.image_shape
        large = (channels, height * factor, width * factor)
        if max(large[1:]) > settings.upscale_tile:
            sizes = f"images of {large[1]} x {large[2]} pixels are not computed in tiles of {settings.upscale_tile}"
            warnings.warn(f"{sizes} here, and need more memory", stacklevel=4)
        part = self.parts["upsampler"]
        noise = RowNoise(seeds, UPSAMPLER_STREAM)
        level = part.process.level(part.process.distinct_times_at([settings.upscale_noise])[0])
        small = (level.alpha * images + level.sigma * noise(self.image_shape)).astype(np.float32)
        noise_times = np.full(len(images), level.network_time, dtype=np.float32)

        def network(x: np.ndarray, times: np.ndarray) -> np.ndarray:
            [output] = self.networks("upsampler_step", x, times, small, noise_times, embeddings)
            return output

        levels = part.process.karras_levels(settings.upscale_steps)
        return dpmpp(part.denoiser(network, clip=1.0), noise(large), levels)

    def _decoder_denoiser(
        self,
        name: str,
        embeddings: np.ndarray,
        text: Features,
        dropped: np.ndarray | None = None,
        guidance: float | None = None,
    ) -> Denoise:
        """The denoiser of a decoder; with `guidance` the rows are N conditions, then the nulls that belong to them."""
        part = self.parts[name]
        drop = np.zeros(len(embeddings), dtype=bool) if dropped is None else dropped
        if part.kind == "text":  # it reads the caption's embedding in place of the image's
            embeddings = text.embedding
            drop = drop | text.empty
        condition = self.networks(f"{name}_condition", embeddings, drop, text.tokens, text.mask, text.empty)

        def network(x: np.ndarray, times: np.ndarray) -> np.ndarray:
            if guidance is None:
                [output] = self.networks(f"{name}_step", x, times, *condition)
                return output
            [output] = self.networks(f"{name}_step", np.concatenate([x, x]), np.tile(times, 2), *condition)
            return interpolate(output, guidance)

        return part.denoiser(network, clip=1.0)


def interpolate(both: np.ndarray, guidance: float) -> np.ndarray:
    """Classifier-free guidance: `both` holds N conditional rows, then the N unconditional ones."""
    conditional, null = np.split(both, 2)
    return null + np.float32(guidance) * (conditional - null)


def normalise(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Float (N, C, H, W) in [-1, 1] -> uint8 (N, H, W, C)."""
    return ((np.clip(images, -1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)
