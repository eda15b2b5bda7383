"""The whole stack at inference: caption -> text embedding -> image embedding -> pixels."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unclip.arguments import (
    Captions,
    caption_list,
    device_named,
    noise_like,
    samples_each,
    unit_embeddings,
)
from unclip.clip import CLIP, Preprocess, TextFeatures, Tokenizer, encode_captions, load_clip
from unclip.decoder.reranking import draw_closest_images
from unclip.devices import inference
from unclip.diffusion.process import Level
from unclip.errors import UserError, quantity, reason, shown
from unclip.fitting import Fit
from unclip.images import to_uint8
from unclip.interfaces import Decoder, ImagePart, Prior
from unclip.pixels import Pictures, read_pictures
from unclip.registry import PARTS
from unclip.settings import Sampling, is_single, seed_list
from unclip.store.hub import find_pipeline, is_hub_name
from unclip.store.index import check_files, read_sampling
from unclip.store.manifest import read_manifests, recorded_fit
from unclip.store.parts import load_part
from unclip.trajectory import Moment

Seeds = int | Sequence[int]
OnStep = Callable[[Moment], None]


@dataclass
class Output:
    """The result of a call: N images, the n images of each caption in a row."""

    images: np.ndarray
    """uint8 (N, H, W, C)."""
    captions: list[str]
    """N captions."""
    seeds: list[int]
    """N seeds; sample i of a caption has seed + i."""
    embeddings: Tensor
    """Image embeddings that the prior drew, unit norm, (N, D)."""
    noise: Tensor
    """The noise that the decoder started from, (N, C, H, W). `UnCLIP.decode` takes it and draws the same images again,
    unless the sampler adds noise and another candidate than the first was kept, which was drawn with another seed."""


class UnCLIP:
    """A trained pipeline. Open one with `UnCLIP.from_pretrained`.

    A sample depends only on its caption, its seed and the settings, never on the other samples of the batch. The
    caption "" stands for no caption: the prior and the decoder then use their learned nulls, and the sample is
    unconditional.

    Settings are those of `unclip.settings.Sampling` by their flat names, such as steps=50, guidance=3.0,
    prior_guidance=1.0, or style="faithful" for several at once. A setting that is given at a call beats the pipeline's
    own (`sampling`), which beats the library's.
    """

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        prior: Prior,
        decoder: Decoder,
        sampling: Sampling | None = None,
        fit: Fit = "crop",
        fast_decoder: Decoder | None = None,
        **optional: ImagePart,
    ):
        """Put a pipeline together from its parts.

        Args:
            prior, decoder: of any kind, see `unclip.interfaces`.
            fit: how oblong images were made square for training.
            fast_decoder: draws in place of the decoder unless the setting fast_steps is 0.
            optional: parts that come after the decoder, by name. They process its images in the order of the registry.
        """
        names = [name for name in PARTS if name in optional]
        if unknown := set(optional) - set(names):
            raise UserError(f"a pipeline has no part {min(unknown)!r}; known are: {', '.join(PARTS)}")
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.clip = clip
        self.prior = prior
        self.decoder = decoder
        self.fast_decoder = fast_decoder
        self.image_parts = {name: optional[name] for name in names}
        self.parts: dict[str, Any] = {
            "clip": clip,
            "prior": prior,
            "decoder": decoder,
            **({"fast_decoder": fast_decoder} if fast_decoder else {}),
            **{name: optional[name] for name in names},
        }
        self.sampling = sampling or Sampling()
        self.fit = fit
        self.origin: dict[str, Any] = {}
        """Name of the pipeline, and SHA-256 of its parts; empty for one that was put together here."""
        check_widths(clip, self.parts)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device = "cpu", revision: str | None = None
    ) -> "UnCLIP":
        """Open a trained pipeline.

        Args:
            path: its folder; or, where there is no such path, its name OWNER/NAME on the Hugging Face Hub.
            revision: branch, tag or commit on the Hub.

        Raises:
            UserError: there is no pipeline, or a part of it is missing, damaged, or of another lineage.
        """
        if not isinstance(path, (str, Path)):
            raise UserError(f"a pipeline is opened by the path of its folder or its name, not {shown(path)}")
        name = str(path) if is_hub_name(path) else Path(path).resolve().name
        path = find_pipeline(path, revision)
        manifests = read_manifests(path)
        check_files(path, manifests)
        for part, manifest in manifests.items():
            if not manifest.complete:
                warnings.warn(f"the {part} in {path} is still in training (step {manifest.step})", stacklevel=2)
        clip, tokenizer, preprocess = load_clip(path)
        if tokenizer is None:
            raise UserError(f"{path} holds no tokenizer.json; restore it")
        others: dict[str, Any] = {part: load_part(path / part)[0] for part in manifests if part != "clip"}
        fit = recorded_fit(manifests["decoder"])
        pipe = cls(clip, tokenizer, preprocess, sampling=read_sampling(path), fit=fit, **others)
        pipe.origin = {"name": name, "sha256": {part: manifest.sha256 for part, manifest in manifests.items()}}
        return pipe.to(device)

    def to(self, device: str | torch.device) -> "UnCLIP":
        device = device_named(device)
        try:
            for model in self.parts.values():
                model.to(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch says that it is not there
            raise UserError(f"device {device} cannot be used here ({reason(error)})") from error
        return self

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    @inference()
    def __call__(
        self, captions: Captions, n: int = 1, seed: Seeds = 0, on_step: OnStep | None = None, **settings
    ) -> Output:
        """Draw n images of each caption.

        Args:
            captions: one or several; "" for an unconditional sample. One longer than CLIP's context is cut, with a
                warning.
            n: images per caption, at least 1.
            seed: sample i of every caption uses seed + i; or N seeds, one per image.
            on_step: called with a `Moment` at every step of the decoder, for each batch; `unclip.trajectory.Trajectory`
                keeps ten of them. Of several candidates it is shown the one that is kept, drawn once more.
            settings: see the class.

        Raises:
            UserError: no captions, or n, a seed or a setting out of range.
        """
        captions, seeds = self._rows(captions, n, seed)
        sampling = self.sampling.for_drawing(**settings)
        encoded = self.encode_captions(captions)
        embeddings = self._embed(encoded, seeds, sampling)
        images, noise = self._decode(embeddings, encoded, seeds, sampling, None, on_step)
        return Output(images, captions, seeds, embeddings, noise)

    @inference()
    def encode_captions(self, captions: Captions) -> TextFeatures:
        """N captions as CLIP reads them, each distinct one read once."""
        return encode_captions(self.clip, self.tokenizer, caption_list(captions))

    def encode_text(self, captions: Captions) -> Tensor:
        """CLIP's unit text embeddings (N, D)."""
        return self.encode_captions(captions).embedding

    @inference()
    def encode_image(self, images: Pictures) -> Tensor:
        """CLIP's unit image embeddings (N, D) of images of any form and size, see `read_images`."""
        pixels = torch.from_numpy(self.read_images(images)).permute(0, 3, 1, 2)
        parts = (pixels[part] for part in batches(len(pixels), self.sampling.batch_size))
        return torch.cat([self.clip.encode_image(self.preprocess(part).to(self.device)) for part in parts])

    def read_images(self, images: Pictures) -> np.ndarray:
        """Read images as those of the training were read: uint8 (N, H, W, C) of the decoder's size and channels.

        Images are files, PIL images, or uint8 arrays (H, W), (H, W, C) or (N, H, W, C); one, or a list. Oblong ones are
        made square as the training data were (`fit`). See `unclip.pixels` for orientation, colours and transparency.
        """
        channels, size, _ = self.decoder.image_shape
        return read_pictures(images, size, channels, self.fit)

    @inference()
    def embed(self, captions: Captions, n: int = 1, seed: Seeds = 0, **settings) -> Tensor:
        """The prior alone: n unit image embeddings per caption, (N, D). Arguments as for calling the pipeline."""
        captions, seeds = self._rows(captions, n, seed)
        return self._embed(self.encode_captions(captions), seeds, self.sampling.override(**settings))

    def decode(
        self,
        embeddings: Tensor | np.ndarray | None,
        captions: Captions | None = None,
        seed: Seeds = 0,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        **settings,
    ) -> np.ndarray:
        """The decoder alone: uint8 images (N, H, W, C).

        Args:
            embeddings: image embeddings (N, D), or None to drop them; those that are not of unit norm are normalised.
            captions: N captions, or None to drop the text.
            seed: image i uses seed + i; or N seeds, one per image.
            noise: what to start from, (N, C, H, W), one candidate; without it the noise of the seeds.
            on_step, settings: as for calling the pipeline.
        """
        return self.decode_with_noise(embeddings, captions, seed, noise, on_step, **settings)[0]

    @inference()
    def decode_with_noise(
        self,
        embeddings: Tensor | np.ndarray | None,
        captions: Captions | None = None,
        seed: Seeds = 0,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        **settings,
    ) -> tuple[np.ndarray, Tensor]:
        """Decode as `decode` does. Returns the images' noise (N, C, H, W) too: of several candidates the kept one's."""
        if embeddings is None and captions is None:
            raise UserError("decode needs embeddings, captions, or both; for an unconditional image give captions=['']")
        texts = [] if captions is None else caption_list(captions)
        if embeddings is not None:
            embeddings = unit_embeddings(embeddings, self.clip.config.embed_dim)
            texts = texts or [""] * len(embeddings)
            if len(embeddings) != len(texts):
                counts = f"{quantity(len(embeddings), 'embedding')} cannot go with {quantity(len(texts), 'caption')}"
                raise UserError(counts)
        seeds = seed_list(seed, len(texts))
        sampling = self.sampling.for_drawing(**settings)
        noise = None if noise is None else noise_like(noise, self.decoder.draw_noise(seeds))
        return self._decode(embeddings, self.encode_captions(texts), seeds, sampling, noise, on_step)

    def _rows(self, captions: Captions, n: int, seed: Seeds) -> tuple[list[str], list[int]]:
        """Captions and seeds, one per sample."""
        captions = caption_list(captions)
        n = samples_each(n, len(captions))
        seeds = seed_list(seed, n) * len(captions) if is_single(seed) else seed_list(seed, n * len(captions))
        return [caption for caption in captions for _ in range(n)], seeds

    def _embed(self, text: TextFeatures, seeds: list[int], sampling: Sampling) -> Tensor:
        sampling.prior.check_read_by(self.prior, "prior")
        size = max(1, sampling.batch_size // sampling.prior.num_candidates)  # all candidates are one batch
        parts = batches(len(seeds), size)
        return torch.cat([self.prior.draw_embeddings(text[part], seeds[part], sampling.prior) for part in parts])

    def _decode(
        self,
        embeddings: Tensor | None,
        text: TextFeatures,
        seeds: list[int],
        sampling: Sampling,
        noise: Tensor | None,
        on_step: OnStep | None,
    ) -> tuple[np.ndarray, Tensor]:
        """uint8 images (N, H, W, C) and the noise (N, C, H, W) that they were drawn from."""
        decoder: Any = self.decoder
        settings: Any = sampling.decoder
        if self.fast_decoder and sampling.fast_decoder.steps:
            decoder = self.fast_decoder
            settings = sampling.fast_decoder
        reranks = noise is None and embeddings is not None and settings.num_candidates > 1
        size = max(1, sampling.batch_size // (settings.num_candidates if reranks else 1))  # candidates are one batch
        images = []
        starts = []
        for part in batches(len(seeds), size):
            part_embeddings = None if embeddings is None else embeddings[part].to(self.device)
            part_text = text[part]
            part_seeds = seeds[part]
            if reranks:
                encode = self._encode_drawn
                drawing = (part_embeddings, part_text, part_seeds, settings, sampling.batch_size)
                drawn, part_seeds = draw_closest_images(decoder, encode, *drawing)
            start = decoder.draw_noise(part_seeds) if noise is None else noise[part]
            if not reranks or on_step:  # a watched image is drawn once more, now that it is known which is kept
                tell = on_step and as_moments(on_step, range(len(seeds))[part], settings.steps)
                drawn = decoder.draw_images(part_embeddings, part_text, part_seeds, settings, start, tell)
            for name, image_part in self.image_parts.items():
                part_settings = getattr(sampling, name, None)
                drawn = image_part.process_images(drawn, part_embeddings, part_text, part_seeds, part_settings)
            images.append(as_array(drawn))
            starts.append(start)
        return np.concatenate(images), torch.cat(starts)

    def _encode_drawn(self, images: Tensor) -> Tensor:
        """CLIP's unit embeddings (B, D) of drawn images (B, C, H, W) in [-1, 1], rounded to whole grey levels."""
        pixels = to_uint8(images).contiguous(memory_format=torch.channels_last)
        return self.clip.encode_image(self.preprocess(pixels))


def check_widths(clip: CLIP, parts: dict[str, Any]) -> None:
    """Raise UserError for a part that was made for a CLIP of other sizes."""
    sizes = {
        "embed_dim": clip.config.embed_dim,
        "text_width": clip.config.text.width,
        "context": clip.config.text.context,
    }
    for part, model in parts.items():
        config = getattr(model, "config", None)
        config = getattr(config, "network", config)
        for name, size in sizes.items():
            made_for = getattr(config, name, size)
            if made_for != size:
                raise UserError(f"the {part} was made for a CLIP with {name} {made_for}, but this one has {size}")


def batches(n: int, size: int) -> list[slice]:
    """Slices of at most `size` rows that cover n."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def as_moments(on_step: OnStep, rows: range, steps: int) -> Callable[[Level, Tensor, Tensor], None]:
    """A decoder's on_step(level, x_t, x0) that calls `on_step` with a `Moment` for each."""
    count = 0

    def tell(level: Level, x: Tensor, x0: Tensor) -> None:
        nonlocal count
        on_step(Moment(rows, count, steps, level.t, as_array(x), as_array(x0)))
        count += 1

    return tell


def as_array(images: Tensor) -> np.ndarray:
    """Float (B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C). Raises UserError for numbers that are not finite."""
    if not images.isfinite().all():  # they would be black
        raise UserError("the drawn pixels are not finite: the weights or the settings are out of range; train anew")
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
