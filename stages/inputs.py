"""What the prior and the decoder are trained on: a frozen CLIP, and captioned images as it sees them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.provenance import describe_source
from stages.data_config import DataConfig
from stages.embed import EmbeddedImages, embed_images
from stages.runtime import print0
from stages.state import start_from
from unclip.clip import CLIPConfig, encode_captions, load_clip
from unclip.errors import UserError
from unclip.store.checkpoint import Manifest, read_manifest
from unclip.store.hub import find_pipeline


@dataclass
class Inputs:
    clip: CLIPConfig
    clip_sha256: str
    logit_scale: float
    """CLIP's factor on cosines."""
    rivals: Tensor
    """Unit text embeddings (R, D) of the captions of the data's classes; none where there are fewer than two."""
    source: dict[str, Any]
    """Where the images are from, as a manifest notes it."""
    train: EmbeddedImages
    validation: EmbeddedImages

    def start(self, model: nn.Module, pipeline: Path | None, stage: str, fit: Callable[[], None]) -> dict[str, str]:
        """`start_from` for a model with statistics of embeddings, which `fit` takes of these ones.

        Those of another pipeline's stage are kept, as its weights are used to them, but not if they are of another
        CLIP's embeddings, which may lie elsewhere by many deviations, nor what is the data's alone.
        """
        fit()
        if pipeline is None:
            return {}
        folder = find_pipeline(pipeline)
        start = start_from(model, folder, stage)
        if read_manifest(folder / stage).parents.get("clip") != self.clip_sha256:
            print0(f"{stage}: {pipeline} has another CLIP; the statistics of the embeddings are taken anew")
            fit()
        return start

    def manifest(
        self, stage: str, training: dict[str, Any], sampling: dict[str, Any], start: dict[str, str]
    ) -> Manifest:
        """A new stage's manifest, which names its parents (`start` is that of `self.start`) and its data."""
        data, parents = data_entry(self.train.data), {"clip": self.clip_sha256} | start
        return Manifest(stage, parents=parents, data=data, source=self.source, training=training, sampling=sampling)


def data_entry(data) -> dict[str, str]:
    """What a manifest says of its data."""
    return {"name": data.name, "fingerprint": data.fingerprint, "example": data.example}


def open_inputs(out: Path, data: DataConfig, device: torch.device) -> Inputs:
    """Load the data and the pipeline's CLIP, and embed the one with the other.

    Raises UserError if the pipeline has no CLIP whose training has ended.
    """
    manifest = read_manifest(out / "clip")
    if not manifest.complete:
        raise UserError(
            f"the clip stage in {out} is still in training (step {manifest.step}); "
            f"finish it with: python train_clip.py --out {out}"
        )
    clip, tokenizer, preprocess = load_clip(out)
    splits = data.load_as(out, "train", "validation")
    train, validation = (embed_images(split, clip, manifest.sha256, tokenizer, preprocess, device) for split in splits)
    classes, none = train.data.class_captions, torch.zeros(0, clip.config.embed_dim)
    rivals = encode_captions(clip, tokenizer, classes).embedding if len(set(classes)) > 1 else none
    source = describe_source(data, splits[0].image_size)
    return Inputs(clip.config, manifest.sha256, clip.scale().item(), rivals.cpu(), source, train, validation)
