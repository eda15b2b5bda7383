"""The evidence that the rules look at. Each piece is read, computed or drawn once, when the first rule asks for it."""

import contextlib
import io
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.dataset import CaptionedImages
from data.provenance import read_provenance
from data.sources import is_available
from stages.curves.drawing import LogLine, read_metrics
from stages.data_config import DataConfig
from unclip.clip import TextFeatures, encode_captions, load_clip
from unclip.devices import inference
from unclip.errors import UserError
from unclip.images import to_uint8
from unclip.registry import PARTS
from unclip.store.index import read_sampling
from unclip.store.manifest import read_manifest
from unclip.store.parts import load_part

LOOKED_AT = 400
"""Validation images that are embedded."""
CAPTIONS = 48
"""Captions of those images that the prior draws embeddings for."""
DRAWS = 3
"""Embeddings for each of them."""
DRAWN = 16
"""Images that the decoder draws, with and without the embedding."""
STEPS = 10
"""Steps of drawing at most."""
NEEDS = {
    "log": "train/metrics.jsonl",
    "data": "the training data",
    "clip": "CLIP and the data",
    "prior": "the prior",
    "decoder": "the decoder",
}


class Evidence:
    """A pipeline in a folder, complete or not."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifests = {
            part: read_manifest(folder / part) for part in PARTS if (folder / part / "config.json").is_file()
        }
        trained = self.manifests.keys()
        self.begun = [part for part in PARTS if part not in trained and (folder / part / "train").is_dir()]
        if not self.manifests:
            raise UserError(f"{folder} holds no trained part of a pipeline; name the folder of one")

    def has(self, need: str, part: str) -> bool:
        """Whether there is what a rule needs, of `NEEDS`."""
        if need == "log":
            return bool(self.log(part))
        if need == "data":
            return self.data is not None
        return self.data is not None and {"clip", need} <= self.manifests.keys()

    def log(self, part: str) -> list[LogLine]:
        """The lines of a part's training log; none where it is not there."""
        path = self.folder / part / "train" / "metrics.jsonl"
        return list(read_metrics(path)) if path.is_file() else []

    def train_options(self, part: str) -> dict[str, Any]:
        """The options of a part's training loop, as the manifest holds them."""
        return self.manifests[part].training.get("train", {})

    @cached_property
    def config(self) -> DataConfig | None:
        """Where the training data came from, if that is known and there."""
        config = read_provenance(self.folder, DataConfig())
        return config if config and is_available(config.source) else None

    @cached_property
    def data(self) -> tuple[CaptionedImages, CaptionedImages] | None:
        """The training and the validation images; None where they are not on this machine."""
        if self.config is None:
            return None
        with contextlib.redirect_stdout(io.StringIO()):  # the training has told of rows that cannot be used
            try:
                train, validation = self.config.load("train", "validation")
            except UserError:
                return None
        return train, validation

    @property
    def validation(self) -> CaptionedImages:
        assert self.data is not None
        return self.data[1]

    @property
    def train(self) -> CaptionedImages:
        assert self.data is not None
        return self.data[0]

    @cached_property
    def rows(self) -> Tensor:
        """The validation images that are looked at (N,), any of them."""
        generator = torch.Generator().manual_seed(0)
        return torch.randperm(len(self.validation), generator=generator)[:LOOKED_AT]

    @cached_property
    def groups(self) -> Tensor:
        """The caption (N,) of each of these images: those of one meaning are one string, as far as the data knows."""
        return self.validation.draw(self.rows, torch.Generator().manual_seed(0), one_phrasing=True)

    @cached_property
    def models(self) -> dict[str, Any]:
        """The trained models but CLIP."""
        return {part: load_part(self.folder / part)[0] for part in self.manifests if part != "clip"}

    @cached_property
    def clip(self) -> Any:
        """CLIP, its tokenizer and its preprocessing."""
        return load_clip(self.folder)

    @inference()
    def embed(self, images: Tensor) -> Tensor:
        """CLIP's unit embeddings (N, D) of images uint8 (N, C, H, W)."""
        clip, _, preprocess = self.clip
        return torch.cat([clip.encode_image(preprocess(part)) for part in images.split(64)])

    @cached_property
    def embeddings(self) -> Tensor:
        """Unit embeddings (N, D) of the images that are looked at."""
        return self.embed(self.validation.images[self.rows])

    @cached_property
    @inference()
    def text(self) -> TextFeatures:
        """The features of their N captions."""
        clip, tokenizer, _ = self.clip
        return encode_captions(clip, tokenizer, [self.validation.captions[i] for i in self.groups])

    @cached_property
    def differ(self) -> Tensor:
        """(N, N), True where two of the images have different captions."""
        return self.groups[:, None] != self.groups

    @cached_property
    @inference()
    def prior_draws(self) -> Tensor:
        """K unit embeddings of the prior for each of the first M captions, (M, K, D), without guidance or reranking."""
        settings = read_sampling(self.folder).prior
        settings = replace(settings, num_candidates=1, guidance=1.0, steps=min(settings.steps, STEPS))
        text = self.text[torch.arange(min(CAPTIONS, len(self.rows))).repeat_interleave(DRAWS)]
        draws = self.models["prior"].draw_embeddings(text, range(len(text)), settings)
        return draws.unflatten(0, (-1, DRAWS))

    @cached_property
    def drawn(self) -> Tensor:
        """The rows (M,) of the images that the decoder draws anew: some of different captions."""
        first_of_each = torch.tensor([int((self.groups == group).nonzero()[0]) for group in self.groups.unique()])
        count = min(DRAWN, len(first_of_each))
        return first_of_each[torch.linspace(0, len(first_of_each) - 1, count).long()]

    @cached_property
    def real_images(self) -> Tensor:
        """These images, uint8 (M, C, H, W)."""
        return self.validation.images[self.rows[self.drawn]]

    @cached_property
    def drawn_from_embeddings(self) -> Tensor:
        """The decoder's images of their embeddings, uint8 (M, C, H, W), from the same noise and without captions.

        With captions for a decoder that reads nothing else, or that has no learned null for them.
        """
        manifest = self.manifests["decoder"]
        text = self.text[self.drawn]
        needs_text = manifest.kind == "text" or not manifest.training.get("drop_text")
        return self._draw(self.embeddings[self.drawn], text if needs_text else text.null())

    @cached_property
    def drawn_from_captions(self) -> Tensor:
        """The same, of the captions and without embeddings."""
        return self._draw(None, self.text[self.drawn])

    @inference()
    def _draw(self, embeddings: Tensor | None, text: TextFeatures) -> Tensor:
        decoder = self.models["decoder"]
        settings = read_sampling(self.folder).decoder
        settings = replace(settings, num_candidates=1, steps=min(settings.steps, STEPS))
        return to_uint8(decoder.draw_images(embeddings, text, [0] * len(text), settings))
