"""The whole stack at inference: caption -> text embedding -> image embedding -> pixels."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unclip.arguments import (
    Captions,
    Images,
    caption_list,
    device_named,
    image_batch,
    noise_like,
    samples_per_caption,
    unit_embeddings,
)
from unclip.clip import CLIP, Preprocess, TextFeatures, Tokenizer, encode_captions, load_clip
from unclip.errors import UserError, reason, shown
from unclip.images import to_uint8
from unclip.settings import MAX_SEED, Sampling, is_single, seed_list
from unclip.store.checkpoint import check_files, load_part, read_manifests
from unclip.store.hub import find_pipeline
from unclip.store.index import read_sampling
from unclip.trajectory import Moment

Seeds = int | Sequence[int]
APART = 2**40
"""So far from a sample's seed is that of its next try: nobody counts seeds up to there."""
OnStep = Callable[[Moment], None]


@dataclass
class Output:
    """What the pipeline returns: N images, the n images of each caption in a row."""

    images: np.ndarray
    """uint8 (N, H, W, C)."""
    captions: list[str]
    """N captions."""
    seeds: list[int]
    """N seeds; sample i of a caption has seed + i."""
    embeddings: Tensor
    """The image embeddings that the prior drew, unit norm, (N, D)."""
    noise: Tensor
    """What the decoder started from, (N, C, H, W): `UnCLIP.decode` takes it, and draws the images again, unless the
    sampler adds noise and a second try was kept, which has it from a seed of its own."""


class UnCLIP:
    """A trained pipeline. Open one with `UnCLIP.from_pretrained`.

    A sample depends on its caption, its seed and the settings alone, never on what else is in the batch. The caption ""
    stands for no caption: the prior and the decoder then use their learned nulls, and the sample is unconditional.

    Settings are those of `unclip.settings.SamplingOptions`, such as steps=50, guidance=3.0, prior_guidance=1.0, or
    style="faithful" for several at once. One that is given at a call beats the pipeline's own (`sampling`), which beats
    the library's.
    """

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        prior: nn.Module,
        decoder: nn.Module,
        sampling: Sampling | None = None,
        **optional: nn.Module,
    ):
        """`prior` and `decoder` are of any kind that can `draw`, see unclip/registry.py; `optional` are its optional
        stages, by name."""
        check_widths(clip, {"prior": prior, "decoder": decoder, **optional})
        self.tokenizer, self.preprocess = tokenizer, preprocess
        self.clip, self.prior, self.decoder = clip, prior, decoder
        self.stages = {"clip": clip, "prior": prior, "decoder": decoder, **optional}
        self.sampling = sampling or Sampling()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device = "cpu", revision: str | None = None
    ) -> "UnCLIP":
        """Open the pipeline in a folder; or, where no such path is, of that name OWNER/NAME on the Hugging Face Hub,
        of which a branch, tag or commit may be named.

        Raises UserError if there is none, or if a stage is missing, damaged, or of another lineage.
        """
        if not isinstance(path, (str, Path)):
            raise UserError(f"a pipeline is opened by the path of its folder or its name, not {shown(path)}")
        path = find_pipeline(path, revision)
        manifests = read_manifests(path)
        check_files(path, manifests)
        for stage, manifest in manifests.items():
            if not manifest.complete:
                warnings.warn(f"the {stage} in {path} is still in training (step {manifest.step})", stacklevel=2)
        clip, tokenizer, preprocess = load_clip(path)
        others = {stage: load_part(path / stage)[0] for stage in manifests if stage != "clip"}
        return cls(clip, tokenizer, preprocess, sampling=read_sampling(path), **others).to(device)

    def to(self, device: str | torch.device) -> "UnCLIP":
        device = device_named(device)
        try:
            for model in self.stages.values():
                model.to(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch says that it is not there
            raise UserError(f"device {device} cannot be used here ({reason(error)})") from error
        return self

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    @torch.inference_mode()
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
                keeps ten of them. Of several tries it sees that which is kept, drawn once more for it.
            settings: see the class.

        Raises:
            UserError: no captions, or n, a seed or a setting out of range.
        """
        captions, seeds = self._rows(captions, n, seed)
        sampling = self.sampling.override(**settings)
        encoded = self.encode_captions(captions)
        embeddings = self._embed(encoded, seeds, sampling)
        images, noise = self._decode(embeddings, encoded, seeds, sampling, None, on_step)
        return Output(images, captions, seeds, embeddings, noise)

    @torch.inference_mode()
    def encode_captions(self, captions: Captions) -> TextFeatures:
        """N captions as CLIP reads them, each distinct one read once."""
        return encode_captions(self.clip, self.tokenizer, caption_list(captions))

    def encode_text(self, captions: Captions) -> Tensor:
        """CLIP's unit text embeddings (N, D)."""
        return self.encode_captions(captions).embedding

    @torch.inference_mode()
    def encode_image(self, images: Images) -> Tensor:
        """CLIP's unit image embeddings (N, D), of PIL images or uint8 (N, H, W, C): an array, or a list of either."""
        images = image_batch(images)
        parts = (images[part] for part in batches(len(images), self.sampling.batch_size))
        return torch.cat([self.clip.encode_image(self.preprocess(part).to(self.device)) for part in parts])

    @torch.inference_mode()
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
            noise: what to start from, (N, C, H, W), and nothing else, whatever `tries` says; without it that of the
                seeds.
            on_step, settings: as for calling the pipeline.
        """
        return self.decode_with_noise(embeddings, captions, seed, noise, on_step, **settings)[0]

    @torch.inference_mode()
    def decode_with_noise(
        self,
        embeddings: Tensor | np.ndarray | None,
        captions: Captions | None = None,
        seed: Seeds = 0,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        **settings,
    ) -> tuple[np.ndarray, Tensor]:
        """`decode`, and the noise (N, C, H, W) that the images were drawn from: that of the tries that are kept."""
        if embeddings is None and captions is None:
            raise UserError("decode needs embeddings, captions, or both; for an unconditional image give captions=['']")
        embeddings = None if embeddings is None else unit_embeddings(embeddings, self.clip.config.embed_dim)
        captions = [""] * len(embeddings) if captions is None else caption_list(captions)
        if embeddings is not None and len(embeddings) != len(captions):
            raise UserError(f"{len(embeddings)} embeddings do not go with {len(captions)} captions")
        seeds = seed_list(seed, len(captions))
        sampling = self.sampling.override(**settings)
        noise = None if noise is None else noise_like(noise, self.decoder.noise(seeds))
        return self._decode(embeddings, self.encode_captions(captions), seeds, sampling, noise, on_step)

    def _rows(self, captions: Captions, n: int, seed: Seeds) -> tuple[list[str], list[int]]:
        """Captions and seeds, one per sample."""
        captions = caption_list(captions)
        n = samples_per_caption(n, len(captions))
        seeds = seed_list(seed, n) * len(captions) if is_single(seed) else seed_list(seed, n * len(captions))
        return [caption for caption in captions for _ in range(n)], seeds

    def _embed(self, captions: TextFeatures, seeds: list[int], sampling: Sampling) -> Tensor:
        parts = batches(
            len(seeds), max(1, sampling.batch_size // sampling.prior.num_candidates)
        )  # it draws all at once
        return torch.cat([self.prior.draw(captions[part], seeds[part], sampling.prior) for part in parts])

    def _decode(
        self,
        embeddings: Tensor | None,
        captions: TextFeatures,
        seeds: list[int],
        sampling: Sampling,
        noise: Tensor | None,
        on_step: OnStep | None,
    ) -> tuple[np.ndarray, Tensor]:
        """uint8 images (N, H, W, C) and the noise (N, C, H, W) that they were drawn from."""
        tries = 1 if noise is not None or embeddings is None else sampling.decoder.num_candidates
        drawn, starts = [], []
        for part in batches(len(seeds), max(1, sampling.batch_size // tries)):  # it draws all tries at once
            own = None if embeddings is None else embeddings[part].to(self.device)
            said, used = captions[part], seeds[part]
            if tries > 1:
                images, used = self._closest(own, said, used, sampling)
            start = self.decoder.noise(used) if noise is None else noise[part]
            if tries == 1 or on_step:  # what is watched is drawn once more, as now only it is known which is kept
                tell = on_step and display_name_moments(on_step, range(len(seeds))[part], sampling.decoder.steps)
                images = as_array(self.decoder.draw(own, said, used, sampling.decoder, start, tell))
            drawn.append(images)
            starts.append(start)
        return np.concatenate(drawn), torch.cat(starts)

    def _closest(
        self, embeddings: Tensor, captions: TextFeatures, seeds: list[int], sampling: Sampling
    ) -> tuple[np.ndarray, list[int]]:
        """Of several images drawn for each embedding that which CLIP embeds closest to it, and the seed it came from.

        For an image's embedding an exact sampler would draw no other image than one that is embedded there. So the
        choice makes no sample more typical, as that by the text does; it takes away what the decoder adds.
        """
        tries, n = sampling.decoder.num_candidates, len(seeds)
        seeds = [(seed + i * APART) % (MAX_SEED + 1) for i in range(tries) for seed in seeds]
        rows = torch.arange(n, device=self.device).repeat(tries)
        drawn, cosines = [], []
        for part in batches(len(rows), sampling.batch_size):
            own, start = embeddings[rows[part]], self.decoder.noise(seeds[part])
            images = self.decoder.draw(own, captions[rows[part]], seeds[part], sampling.decoder, start, None)
            drawn.append(as_array(images))
            cosines.append((self.encode_image(drawn[-1]) * own).sum(dim=1))
        best = torch.cat(cosines).view(tries, n).argmax(dim=0) * n + rows[:n]
        return np.concatenate(drawn)[best.cpu().numpy()], [seeds[i] for i in best.tolist()]


def check_widths(clip: CLIP, stages: dict[str, nn.Module]) -> None:
    """Raise UserError for a stage that was made for a CLIP of other sizes."""
    own, text = clip.config, clip.config.text
    sizes = {"embed_dim": own.embed_dim, "text_width": text.width, "context": text.context}
    for stage, model in stages.items():
        for name, size in sizes.items():
            if (found := getattr(getattr(model, "config", None), name, size)) != size:
                raise UserError(f"the {stage} was made for a CLIP with {name} {found}, but this one has {size}")


def batches(n: int, size: int) -> list[slice]:
    """Slices of at most `size` rows that cover n."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def display_name_moments(on_step: OnStep, rows: range, steps: int) -> Callable[[int, Tensor, Tensor], None]:
    """A decoder's on_step(t, x_t, x0) that tells `on_step` of each as a `Moment`."""
    count = 0

    def tell(t: int, x: Tensor, x0: Tensor) -> None:
        nonlocal count
        on_step(Moment(rows, count, steps, t, as_array(x), as_array(x0)))
        count += 1

    return tell


def as_array(images: Tensor) -> np.ndarray:
    """Float (B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C)."""
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
