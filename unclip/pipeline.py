"""The whole stack at inference: caption -> text embedding -> image embedding -> pixels."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.checkpoint import STAGES, check_lineage, load_stage, read_manifest
from unclip.clip import CLIP, Preprocess, Tokenizer, load_clip
from unclip.decoder import Decoder, DecoderConfig, draw_images
from unclip.errors import UserError
from unclip.images import to_uint8
from unclip.prior import Prior, PriorConfig, draw_embeddings
from unclip.samplers import spaced_timesteps
from unclip.settings import Sampling, check_seeds

MOMENTS = 10


@dataclass
class Moment:
    """One step of the denoising."""

    t: int
    x: np.ndarray
    """The state x_t, uint8 (N, H, W, C)."""
    x0: np.ndarray
    """The clean image predicted from it, uint8 (N, H, W, C)."""


@dataclass
class Output:
    """What the pipeline returns: N images, a caption's n images in a row."""

    images: np.ndarray
    """uint8 (N, H, W, C)."""
    captions: list[str]
    """N captions."""
    seeds: list[int]
    """N seeds; sample i of a caption has seed + i."""
    embeddings: Tensor
    """The image embeddings that the prior drew, unit norm, (N, D)."""
    trajectory: list[Moment] = field(default_factory=list)
    """Ten moments of the denoising, the first at pure noise, if asked for."""


class UnCLIP:
    """A trained pipeline. Open one with `UnCLIP.from_pretrained`.

    A sample depends on its caption, its seed and the settings alone, never on what else is in the batch. The caption ""
    stands for no caption: the prior and the decoder then use their learned nulls, and the sample is unconditional.
    """

    def __init__(self, clip: CLIP, tokenizer: Tokenizer, preprocess: Preprocess, prior: Prior, decoder: Decoder):
        self.clip, self.tokenizer, self.preprocess = clip, tokenizer, preprocess
        self.prior, self.decoder = prior, decoder
        self.sampling = Sampling()

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device = "cpu") -> "UnCLIP":
        """Open the pipeline in a folder. Raises UserError if a stage is missing, damaged, or of another lineage."""
        path = Path(path)
        manifests = {stage: read_manifest(path / stage) for stage in STAGES}
        check_lineage(manifests)
        for stage, manifest in manifests.items():
            if not manifest.complete:
                warnings.warn(f"the {stage} in {path} is still in training (step {manifest.step})", stacklevel=2)
        clip, tokenizer, preprocess = load_clip(path)
        prior, _ = load_stage(path / "prior", Prior, PriorConfig)
        decoder, _ = load_stage(path / "decoder", Decoder, DecoderConfig)
        return cls(clip, tokenizer, preprocess, prior, decoder).to(device)

    def to(self, device: str | torch.device) -> "UnCLIP":
        for model in (self.clip, self.prior, self.decoder):
            model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    @torch.inference_mode()
    def __call__(
        self, captions: str | Sequence[str], n: int = 1, seed: int = 0, trajectory: bool = False, **settings
    ) -> Output:
        """Draw n images of each caption.

        Args:
            captions: one or several; "" for an unconditional sample. One longer than CLIP's context is cut, with a
                warning.
            n: images a caption, at least 1.
            seed: sample i of every caption uses seed + i.
            trajectory: also keep ten moments of the denoising.
            settings: fields of `Sampling`, such as steps=50, guidance=3.0, sampler="ddim".

        Raises:
            UserError: no captions, or n, seed or a setting out of range.
        """
        captions, seeds = self._rows(captions, n, seed)
        sampling = replace(self.sampling, **settings)
        read = self._read(captions)
        embeddings = self._embed(read, seeds, sampling)
        images, moments = self._decode(embeddings, read, seeds, sampling, trajectory)
        return Output(images, captions, seeds, embeddings, moments)

    @torch.inference_mode()
    def encode_text(self, captions: str | Sequence[str]) -> Tensor:
        """CLIP's unit text embeddings (N, D)."""
        read = self._read(_as_list(captions))
        return read.text[read.rows]

    @torch.inference_mode()
    def encode_image(self, images: Tensor | np.ndarray | Image.Image | Sequence[Image.Image]) -> Tensor:
        """CLIP's unit image embeddings (N, D), of PIL images or uint8 (N, H, W, C)."""
        images = [images] if isinstance(images, Image.Image) else images
        if isinstance(images, (Tensor, np.ndarray)):
            images = torch.as_tensor(images)
            if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[-1] not in (1, 3):
                raise UserError(f"images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {tuple(images.shape)}")
            images = images.permute(0, 3, 1, 2)
        if len(images) == 0:
            raise UserError("the list of images is empty; give at least one")
        parts = (images[i : i + self.sampling.batch_size] for i in range(0, len(images), self.sampling.batch_size))
        return torch.cat([self.clip.encode_image(self.preprocess(part).to(self.device)) for part in parts])

    @torch.inference_mode()
    def embed(self, captions: str | Sequence[str], n: int = 1, seed: int | Sequence[int] = 0, **settings) -> Tensor:
        """The prior alone: n unit image embeddings a caption, (N, D).

        Arguments as for calling the pipeline; `seed` may also be N seeds, one an embedding.
        """
        captions, seeds = self._rows(captions, n, seed)
        return self._embed(self._read(captions), seeds, replace(self.sampling, **settings))

    @torch.inference_mode()
    def decode(
        self,
        embeddings: Tensor | np.ndarray | None,
        captions: Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        **settings,
    ) -> np.ndarray:
        """The decoder alone: uint8 images (N, H, W, C).

        Args:
            embeddings: unit image embeddings (N, D), or None to drop them.
            captions: N captions, or None to drop the text.
            seed: image i uses seed + i; or N seeds, one an image.
        """
        if embeddings is None and captions is None:
            raise UserError("decode needs embeddings, captions, or both; for an unconditional image give captions=['']")
        width = self.clip.config.embed_dim
        embeddings = None if embeddings is None else torch.as_tensor(embeddings, dtype=torch.float)
        if embeddings is not None and (embeddings.ndim != 2 or embeddings.shape[1] != width or len(embeddings) == 0):
            raise UserError(f"embeddings must be (N, {width}) with N at least 1, not {tuple(embeddings.shape)}")
        captions = _as_list([""] * len(embeddings) if captions is None else captions)
        if embeddings is not None and len(embeddings) != len(captions):
            raise UserError(f"{len(embeddings)} embeddings do not go with {len(captions)} captions")
        seeds = _seeds(seed, len(captions))
        return self._decode(embeddings, self._read(captions), seeds, replace(self.sampling, **settings))[0]

    def _rows(self, captions: str | Sequence[str], n: int, seed: int | Sequence[int]) -> tuple[list[str], list[int]]:
        """Captions and seeds, one a sample."""
        captions = _as_list(captions)
        if n < 1:
            raise UserError(f"n must be at least 1, not {n}")
        seeds = _seeds(seed, n) * len(captions) if isinstance(seed, int) else _seeds(seed, n * len(captions))
        return [c for c in captions for _ in range(n)], seeds

    def _read(self, captions: list[str]) -> "Read":
        """Put the captions through CLIP, each distinct one once."""
        row_of = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        ids = self.tokenizer.encode(list(row_of), self.clip.config.text.context).to(self.device)
        text, encodings = self.clip.encode_text(ids)
        empty = torch.tensor([not caption.strip() for caption in row_of], device=self.device)
        rows = torch.tensor([row_of[caption] for caption in captions], device=self.device)
        return Read(text, encodings, self.clip.text.mask(ids), empty, rows)

    def _embed(self, read: "Read", seeds: list[int], sampling: Sampling) -> Tensor:
        return draw_embeddings(
            self.prior, read.text, read.encodings, read.mask, read.rows, seeds, sampling, drop=read.empty
        )

    def _decode(
        self,
        embeddings: Tensor | None,
        read: "Read",
        seeds: list[int],
        sampling: Sampling,
        trajectory: bool = False,
    ) -> tuple[np.ndarray, list[Moment]]:
        encodings, mask, drop_text = (tensor[read.rows] for tensor in (read.encodings, read.mask, read.empty))
        drop_image = torch.full_like(drop_text, embeddings is None)
        if embeddings is None:
            embeddings = torch.zeros(len(read.rows), self.clip.config.embed_dim)
        timesteps = spaced_timesteps(self.decoder.config.timesteps, sampling.steps)
        keep = {timesteps[i] for i in np.linspace(0, len(timesteps) - 1, MOMENTS).round().astype(int)}
        moments: dict[int, list] = {}

        def record(t: int, x: Tensor, x0: Tensor) -> None:
            if t in keep:
                moments.setdefault(t, []).append((_as_array(x), _as_array(x0)))

        images = draw_images(
            self.decoder, embeddings.to(self.device), encodings, mask, seeds, sampling, drop_image, drop_text,
            record if trajectory else None,
        )  # fmt: skip
        joined = [Moment(t, *map(np.concatenate, zip(*parts, strict=True))) for t, parts in moments.items()]
        return _as_array(images), joined


class Read(NamedTuple):
    """N captions, of which U are distinct, as CLIP reads them."""

    text: Tensor  # (U, D), unit norm
    encodings: Tensor  # (U, L, W)
    mask: Tensor  # (U, L), False for padding
    empty: Tensor  # (U,), True for a caption that stands for none
    rows: Tensor  # (N,), which of the U each caption is


def _as_list(captions: str | Sequence[str]) -> list[str]:
    captions = [captions] if isinstance(captions, str) else list(captions)
    if not captions:
        raise UserError("the list of captions is empty; give at least one")
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f"a caption must be a string, not {caption!r}")
    return captions


def _seeds(seed: int | Sequence[int], n: int) -> list[int]:
    if isinstance(seed, int):
        check_seeds(seed, n)
        return list(range(seed, seed + n))
    if len(seed) != n:
        raise UserError(f"{len(seed)} seeds do not go with {n} images")
    for one in seed:
        check_seeds(one, 1)
    return list(seed)


def _as_array(images: Tensor) -> np.ndarray:
    """Float (B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C)."""
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
