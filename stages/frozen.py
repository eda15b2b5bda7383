"""The frozen CLIP that the prior and the decoder are trained on, and the data as it sees them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.dataset import CaptionedImages
from stages import runtime
from stages.data import DataConfig
from stages.embed import Embedded, embed_dataset
from unclip.checkpoint import Manifest, read_manifest
from unclip.clip import CLIPConfig, load_clip
from unclip.errors import UserError


@dataclass
class Frozen:
    clip: CLIPConfig
    data: CaptionedImages
    validation: CaptionedImages
    embedded: Embedded
    embedded_validation: Embedded
    parents: dict[str, str]
    """SHA-256 of the CLIP."""

    def manifest(self, stage: str, training: dict[str, Any], start: dict[str, str]) -> Manifest:
        """A new stage's manifest, which names its parents (`start` is that of `loop.start_from`) and its data."""
        source = {"name": self.data.name, "fingerprint": self.data.fingerprint}
        return Manifest(stage, parents=self.parents | start, data=source, training=training)


def prepare(out: Path, data: DataConfig, device: torch.device, flipped: bool = False) -> Frozen:
    """Load the data and the pipeline's CLIP, and embed the one with the other.

    Raises UserError if the pipeline has no CLIP whose training has ended.
    """
    parent = read_manifest(out / "clip")
    if not parent.complete:
        raise UserError(
            f"the clip stage in {out} is still in training (step {parent.step}); "
            f"finish it with: python train_clip.py --out {out}"
        )
    clip, tokenizer, preprocess = load_clip(out)
    train, validation = data.load("train", "validation")
    with runtime.main_first():
        embedded, embedded_validation = (
            embed_dataset(images, clip, parent.sha256, tokenizer, preprocess, device, flipped and images is train)
            for images in (train, validation)
        )
    parents = {"clip": parent.sha256}
    return Frozen(clip.config, train, validation, embedded.to(device), embedded_validation.to(device), parents)
