"""A pipeline's model card: README.md in the form of the Hugging Face Hub, a head in YAML and then Markdown."""

import re
from pathlib import Path
from typing import Any

from unclip.checkpoint import Manifest
from unclip.errors import UserError
from unclip.files import read_json

KNOWN_DATA = {
    "fashion-mnist": ("mit", "zalando-datasets/fashion_mnist"),
    "cifar10": ("unknown", "uoft-cs/cifar10"),
    "emoji": ("ofl-1.1", ""),
}
"""Licence, and name on the Hub, of the data sets that this project knows by name."""
SETTINGS = ("steps", "batch_size", "lr", "muon_lr", "warmup", "weight_decay", "ema", "seed")


def model_card(name: str, licence: str, manifests: dict[str, Manifest], sizes: dict[str, int], report: Path | None) -> str:
    """
    Args:
        name: of the pipeline, OWNER/NAME if it is on the Hub.
        licence: of the weights, as the Hub calls it; "" for that of the data where it is known.
        manifests, sizes: of each stage its manifest and its number of parameters.
        report: evaluation.json of these weights.
    """
    data = sorted({manifest.data.get("name", "unknown").rsplit("/", 1)[0] for manifest in manifests.values()})
    head = {
        "license": licence or data_licence(manifests),
        "library_name": "unclip",
        "pipeline_tag": "text-to-image",
        "tags": ["unclip", "dall-e-2", "diffusion", "clip"],
        "datasets": [on_hub for one in data if (on_hub := hub_name(one))],
    }
