"""What a pipeline is made of, and the samplers: the two tables that a new ability adds a row to.

Code is named as "module:attribute" and imported when it is used, so that reading a table needs no torch.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from unclip.errors import UserError


@dataclass(frozen=True)
class Part:
    """A part of a pipeline that is trained by itself."""

    kinds: dict[str, Any]
    """Its kinds, the default first: name -> model class. A model class names its `config_class`.

    What a kind must be able to do: a prior has draw(captions, seeds, settings) -> unit embeddings (N, D); a decoder has
    noise(seeds) -> (N, C, H, W) and draw(embeddings, captions, seeds, settings, noise, on_step) -> images (N, C, H, W).
    """
    parents: tuple[str, ...] = ()
    """The stages that it is trained on, which come before it in the table."""
    optional: bool = False
    """Whether a pipeline is complete without it."""


PARTS = {
    "clip": Part({"transformer": "unclip.clip.model:CLIP"}),
    "prior": Part({"diffusion": "unclip.prior.model:Prior"}, parents=("clip",)),
    "decoder": Part({"diffusion": "unclip.decoder.model:Decoder"}, parents=("clip",)),
}


@dataclass(frozen=True)
class SamplerRow:
    """A way from noise to a sample, see unclip/diffusion/samplers.py."""

    function: Any
    reads: tuple[str, ...] = ()
    """The settings that it takes beside those that all samplers share."""


SAMPLERS = {
    "ddpm": SamplerRow("unclip.diffusion.samplers:ddpm"),
    "ddim": SamplerRow("unclip.diffusion.samplers:ddim", reads=("eta",)),
    "dpmpp": SamplerRow("unclip.diffusion.samplers:dpmpp"),
}


def find(code: Any) -> Any:
    """The object that "module:attribute" names; anything but a string stands for itself."""
    if not isinstance(code, str):
        return code
    module, attribute = code.split(":")
    return getattr(importlib.import_module(module), attribute)


def default_kind(stage: str) -> str:
    return next(iter(PARTS[stage].kinds))


def model_class(stage: str, kind: str) -> type:
    """The model class of a stage's kind. Raises UserError if the table does not have it."""
    kinds = PARTS[stage].kinds if stage in PARTS else {}
    if kind not in kinds:
        raise UserError(f"there is no {stage} of kind {kind!r} here; known are: {', '.join(kinds) or 'none'}")
    return find(kinds[kind])


def choose_sampler(settings: Any) -> Callable:
    """The sampler that `DecoderSettings` name, with those of them that it reads."""
    sampler = SAMPLERS[settings.sampler]
    return partial(find(sampler.function), **{name: getattr(settings, name) for name in sampler.reads})
