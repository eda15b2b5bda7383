"""What the prior and the decoder are trained on: a frozen CLIP, and captioned images as it sees them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.remembered import note
from stages.data import DataConfig
from stages.embed import EmbeddedImages, embed_images
from unclip.checkpoint import Manifest, read_manifest
from unclip.clip import CLIPConfig, load_clip
from unclip.errors import UserError


@dataclass
class Inputs:
    clip: CLIPConfig
    clip_sha256: str
    source: dict[str, Any]
    """Where the images are from, as a manifest notes it."""
    train: EmbeddedImages
    validation: EmbeddedImages

    def manifest(
        self, stage: str, training: dict[str, Any], sampling: dict[str, Any], start: dict[str, str]
    ) -> Manifest:
        """A new stage's manifest, which names its parents (`start` is that of `start_from`) and its data."""
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
    return Inputs(clip.config, manifest.sha256, note(data, splits[0].image_size), train, validation)
