"""The whole stack at inference: caption -> text embedding -> image embedding -> pixels."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unclip.arguments import (
    Captions,
    caption_list,
    captions_per_image,
    device_named,
    noise_like,
    samples_each,
    unit_embeddings,
)
from unclip.clip import CLIP, Preprocess, TextFeatures, Tokenizer, encode_captions, load_clip
from unclip.devices import gradients, inference, precision_of, set_weight_dtype, weight_dtype, wide
from unclip.drawing import Conditions, OnStep, batches, check_guided, draw_arrays, draw_batches, drawing_part
from unclip.errors import UserError, quantity, reason, shown
from unclip.fitting import Fit
from unclip.foreign_names import explain_unknown
from unclip.interfaces import Decoder, HasReranker, ImagePart, Prior
from unclip.outputs import Output
from unclip.pixels import Pictures, read_pictures
from unclip.registry import PARTS
from unclip.settings import Sampling, check_given, is_single, seed_list
from unclip.store.hub import find_pipeline, is_hub_name
from unclip.store.index import check_files, read_sampling
from unclip.store.manifest import Manifest, read_manifests, recorded_fit
from unclip.store.parts import load_part
from unclip.store.saving import push_pipeline, save_pipeline
from unclip.summary import summarise

Seeds = int | Sequence[int]


class UnCLIP:
    """A trained pipeline. Open one with `UnCLIP.from_pretrained`.

    A sample depends only on its caption, its seed and the settings, never on the other samples of the batch. The
    caption "" stands for no caption: the prior and the decoder then use their learned nulls, and the sample is
    unconditional.

    Settings are those of `unclip.settings.Sampling` by their flat names, such as steps=50, guidance=3.0,
    prior_guidance=1.0, or style="faithful" for several at once. A setting that is given at a call beats the pipeline's
    own (`sampling`), which beats the library's.

    Guidance leads away from `negative`, one caption or one for each, in place of the learned null.
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
        if not isinstance(clip, CLIP) or not isinstance(tokenizer, Tokenizer):
            raise UserError(
                f"clip and tokenizer must be as unclip.clip.load_clip(...) returns them, not {type(clip).__name__} and "
                f"{type(tokenizer).__name__}; load_clip takes a CLIPModel and its processor"
            )
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
        self.sampling = sampling or Sampling()
        self.fit = fit
        self.origin: dict[str, Any] = {}
        """Name of the pipeline, and SHA-256 of its parts; empty for one that was put together here."""
        self.folder: Path | None = None
        self.manifests: dict[str, Manifest] = {}
        """The folder that it was opened from or saved to, and the manifests of its parts there."""
        check_widths(clip, self.parts)

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that the pipeline has, by name, in the order of the registry."""
        parts = {"clip": self.clip, "prior": self.prior, "decoder": self.decoder, "fast_decoder": self.fast_decoder}
        return {name: model for name, model in parts.items() if model is not None} | self.image_parts

    def __repr__(self) -> str:
        return summarise(self)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        **unknown: Any,
    ) -> "UnCLIP":
        """Open a trained pipeline.

        Args:
            path: its folder; or, where there is no such path, its name OWNER/NAME on the Hugging Face Hub.
            revision: branch, tag or commit on the Hub.
            dtype: precision, see `to`.

        Raises:
            UserError: there is no pipeline, or a part of it is missing, damaged, or of another lineage.
        """
        for name in unknown:
            raise UserError(explain_unknown(name, ("path", "device", "revision", "dtype")))
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
        pipe._is_at(path, name, manifests)
        return pipe.to(device, dtype)

    def _is_at(self, folder: Path, name: str, manifests: dict[str, Manifest]) -> None:
        """Note where the pipeline is stored, and as which."""
        self.folder = folder.absolute()
        self.manifests = manifests
        self.origin = {"name": name, "sha256": {part: manifest.sha256 for part, manifest in manifests.items()}}

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> "UnCLIP":
        """Move the pipeline to a device, to a precision, or both.

        In torch.bfloat16 or torch.float16 the matrices take half the memory, and products are computed so. Pictures
        differ a little from those in float32. The rounding stays, whatever precision follows.
        """
        if isinstance(device, torch.dtype):
            dtype = device
            device = None
        device = self.device if device is None else device_named(device)
        try:
            for model in self.parts.values():
                model.to(device)
                if dtype is not None:
                    set_weight_dtype(model, dtype)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch says that it is not there
            raise UserError(f"device {device} cannot be used here ({reason(error)})") from error
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline as it is now, weights and `sampling`: see `unclip.store.saving.save_pipeline`."""
        folder = Path(folder)
        self._is_at(folder, folder.resolve().name, save_pipeline(self, folder))

    def push_to_hub(self, name: str, licence: str | None = None) -> str:
        """Publish the pipeline as it is now under a name OWNER/NAME on the Hugging Face Hub. Returns its address."""
        return push_pipeline(self, name, licence)

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        return weight_dtype(self.clip)

    @inference()
    def __call__(
        self,
        captions: Captions = (),
        n: int = 1,
        seed: Seeds = 0,
        on_step: OnStep | None = None,
        negative: Captions | None = None,
        **settings,
    ) -> Output:
        """Draw n images of each caption.

        Args:
            captions: one or several; "" for an unconditional sample. One longer than CLIP's context is cut, with a
                warning.
            n: images per caption, at least 1.
            seed: sample i of every caption uses seed + i; or N seeds, one per image.
            on_step: called with a `Moment` at every step of the decoder, for each batch; `unclip.trajectory.Trajectory`
                keeps ten of them. Of several candidates it is shown the one that is kept, drawn once more. If it
                raises `StopDrawing`, the images so far are returned, the batch's as they are predicted then.
            negative, settings: see the class.

        Raises:
            UserError: no captions, or n, a seed or a setting out of range.
        """
        sampling = self._sampling(settings)
        captions, seeds, negatives = self._rows(captions, n, seed, negative)
        text = self.encode_captions(captions, negatives)
        check_guided(text, sampling.prior, drawing_part(self, sampling)[1])
        embeddings = self.draw_embeddings(text, seeds, sampling)
        conditions = Conditions(embeddings, text, seeds, from_prior=True)
        images, noise, embeddings = draw_arrays(self, conditions, sampling, on_step)
        drawn = slice(len(images))
        return Output(images, captions[drawn], seeds[drawn], embeddings, noise, sampling, self.origin)

    @inference()
    def encode_captions(self, captions: Captions, negative: Captions | None = None) -> TextFeatures:
        """N captions as CLIP reads them, each distinct one read once; with what guidance leads each away from."""
        captions = caption_list(captions)
        negatives = [] if negative is None else captions_per_image(negative, len(captions))
        with precision_of(self.clip):
            features = encode_captions(self.clip, self.tokenizer, captions + negatives).map(wide)
        text = features[: len(captions)]
        return replace(text, negative=features[len(captions) :]) if negatives else text

    def encode_text(self, captions: Captions) -> Tensor:
        """CLIP's unit text embeddings (N, D)."""
        return self.encode_captions(captions).embedding

    @inference()
    def encode_image(self, images: Pictures) -> Tensor:
        """CLIP's unit image embeddings (N, D) of images of any form and size, see `read_images`."""
        pixels = torch.from_numpy(self.read_images(images)).permute(0, 3, 1, 2)
        parts = (pixels[part] for part in batches(len(pixels), self.sampling.batch_size))
        with precision_of(self.clip):
            return torch.cat([wide(self.clip.encode_image(self.preprocess(part).to(self.device))) for part in parts])

    def read_images(self, images: Pictures) -> np.ndarray:
        """Read images as those of the training were read: uint8 (N, H, W, C) of the decoder's size and channels.

        Images are files, PIL images, or uint8 arrays (H, W), (H, W, C) or (N, H, W, C); one, or a list. Oblong ones are
        made square as the training data were (`fit`). See `unclip.pixels` for orientation, colours and transparency.
        """
        channels, size, _ = self.decoder.image_shape
        return read_pictures(images, size, channels, self.fit)

    @inference()
    def embed(
        self, captions: Captions = (), n: int = 1, seed: Seeds = 0, negative: Captions | None = None, **settings
    ) -> Tensor:
        """The prior alone: n unit image embeddings per caption, (N, D). Arguments as for calling the pipeline."""
        sampling = self._sampling(settings)
        captions, seeds, negatives = self._rows(captions, n, seed, negative)
        text = self.encode_captions(captions, negatives)
        check_guided(text, sampling.prior)
        return self.draw_embeddings(text, seeds, sampling)

    def decode(
        self,
        embeddings: Tensor | np.ndarray | None = None,
        captions: Captions | None = None,
        seed: Seeds = 0,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        negative: Captions | None = None,
        **settings,
    ) -> np.ndarray:
        """The decoder alone: uint8 images (N, H, W, C).

        Args:
            embeddings: image embeddings (N, D), or None to drop them; those that are not of unit norm are normalised.
            captions: N captions, or None to drop the text.
            seed: image i uses seed + i; or N seeds, one per image.
            noise: what to start from, (N, C, H, W), one candidate; without it the noise of the seeds.
            on_step, negative, settings: as for calling the pipeline.
        """
        return self.decode_with_noise(embeddings, captions, seed, noise, on_step, negative, **settings)[0]

    @inference()
    def decode_with_noise(
        self,
        embeddings: Tensor | np.ndarray | None = None,
        captions: Captions | None = None,
        seed: Seeds = 0,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        negative: Captions | None = None,
        **settings,
    ) -> tuple[np.ndarray, Tensor]:
        """Decode as `decode` does. Returns the images' noise (N, C, H, W) too: of several candidates the kept one's."""
        sampling = self._sampling(settings)
        conditions = self._conditions(embeddings, captions, seed, noise, negative)
        check_guided(conditions.text, drawing_part(self, sampling)[1])
        images, start, _ = draw_arrays(self, conditions, sampling, on_step)
        return images, start

    def decode_tensor(
        self,
        embeddings: Tensor | None = None,
        captions: Captions | None = None,
        seed: Seeds = 0,
        noise: Tensor | None = None,
        **settings,
    ) -> Tensor:
        """Decode as `decode` does, one candidate each, to a tensor (N, C, H, W) in [-1, 1] that has gradients.

        They reach embeddings and noise that require them. All steps stay in memory for that, so take few.
        """
        sampling = self._sampling(settings)
        with gradients():
            given = self._conditions(embeddings, captions, seed, noise, None)
            start = self.decoder.draw_noise(given.seeds) if noise is None else given.noise
            return torch.cat([batch.images for batch in draw_batches(self, given._replace(noise=start), sampling)])

    def _conditions(
        self,
        embeddings: Tensor | np.ndarray | None,
        captions: Captions | None,
        seed: Seeds,
        noise: Tensor | None,
        negative: Captions | None,
    ) -> Conditions:
        """The arguments of `decode`, checked."""
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
        noise = None if noise is None else noise_like(noise, self.decoder.draw_noise(seeds))
        return Conditions(embeddings, self.encode_captions(texts, negative), seeds, noise)

    def _sampling(self, settings: dict[str, Any]) -> Sampling:
        """The pipeline's settings, with others of a call. Raises UserError for those that change nothing."""
        check_given(settings, self.parts)
        return self.sampling.for_drawing(**settings)

    def _rows(
        self, captions: Captions, n: int, seed: Seeds, negative: Captions | None
    ) -> tuple[list[str], list[int], list[str] | None]:
        """Captions and seeds, and negative captions where there are any, one per sample."""
        captions = caption_list(captions)
        n = samples_each(n, len(captions))
        seeds = seed_list(seed, n) * len(captions) if is_single(seed) else seed_list(seed, n * len(captions))
        negatives = None if negative is None else captions_per_image(negative, len(captions))
        return repeat_each(captions, n), seeds, negatives and repeat_each(negatives, n)

    def draw_embeddings(self, text: TextFeatures, seeds: list[int], sampling: Sampling) -> Tensor:
        """One unit image embedding (N, D) for each of N captions, drawn by the prior in batches.

        Further candidates are drawn only if reranking may keep one of them for some caption.
        """
        settings = sampling.prior
        settings.check_read_by(self.prior, "prior")
        if isinstance(self.prior, HasReranker):
            keeps_first = self.prior.reranker.keeps_first(text.embedding, text.empty, settings.threshold)
            settings = replace(settings, num_candidates=1) if keeps_first.all() else settings
        size = max(1, sampling.batch_size // settings.num_candidates)  # all candidates are one batch
        parts = batches(len(seeds), size)
        return torch.cat([self.prior.draw_embeddings(text[part], seeds[part], settings) for part in parts])


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


def repeat_each(captions: list[str], n: int) -> list[str]:
    """Each caption n times in a row."""
    return [caption for caption in captions for _ in range(n)]
