"""Settings with which each kind of edit draws unless the call says otherwise."""

from collections.abc import Iterable
from typing import Any

from unclip.pipeline import UnCLIP
from unclip.settings import check_given, check_parts

INVERTIBLE: dict[str, Any] = {
    "sampler": "ddim",
    "eta": 0.0,
    "spacing": "even",
    "guidance": 1.0,
    "steps": 50,
    "num_candidates": 1,
}
"""For edits that keep an image's own noise. Only deterministic DDIM can run backwards. With evenly spaced times, few
steps lead back closest to the image. Guidance is off by default."""
PAINTING: dict[str, Any] = {"sampler": "ddpm", "eta": 0.0, "guidance": 1.0, "steps": 25, "num_candidates": 1}
DEFAULTS: dict[str, dict[str, Any]] = {
    "vary": {},
    "blend": INVERTIBLE,
    "change": INVERTIBLE | {"guidance": 2.5},  # with less guidance some images do not reach the second text
    "mix": {"prior_threshold": 1.0},  # typical samples of each prompt: the mean of unusual ones rarely shows either
    "inpaint": PAINTING,
    "probe": {"num_candidates": 1},  # reranking by the embedding would undo the loss of components
    "corrupt": {},
    "image_to_image": {"num_candidates": 1},  # each image is drawn once, from its own start
}
"""Settings in which each kind of edit differs from the pipeline's own."""
DRAWN_WITH = {
    "vary": ("decoder", "fast_decoder", "upsampler"),
    "vary with keep": ("decoder", "upsampler"),
    "blend": ("decoder", "upsampler"),
    "change": ("decoder", "upsampler"),
    "inpaint": ("decoder",),
    "inpaint with a caption": ("prior", "decoder"),
    "image_to_image": ("decoder", "upsampler"),
    "image_to_image with a caption": ("prior", "decoder", "upsampler"),
    "probe": ("decoder", "fast_decoder", "upsampler"),
}
"""The parts whose settings each kind of edit reads; mix reads all."""


def check_settings(pipe: UnCLIP, edit: str, settings: Iterable[str]) -> None:
    """Raise UserError for a setting that changes nothing in an edit."""
    check_parts(settings, DRAWN_WITH[edit], f"{edit} does not draw with")
    check_given(settings, pipe.parts)
