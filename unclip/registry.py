"""The parts of a pipeline, their kinds, and the samplers: the tables that a new ability adds a row to.

Code is named as "module:attribute" and imported when it is used. So reading a table needs no torch, and the library no
trainer. A row may also hold the object itself.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from unclip.errors import UserError


@dataclass(frozen=True)
class Kind:
    """One kind of a part: everything that is needed to train, save, load, sample, plan and publish it."""

    model: Any
    """Class of the model, see `unclip.interfaces`."""
    presets: Any
    """Presets of its training: name -> options, instances of a `stages.run_options.PartRun`."""
    stage: Any
    """Class of its training stage, see `stages.train.PartStage`."""


@dataclass(frozen=True)
class Part:
    """A part of a pipeline, which is trained by itself."""

    kinds: dict[str, Kind]
    """Its kinds by name, the default first."""
    parents: tuple[str, ...] = ()
    """The parts that it is trained on, which come before it in the table."""
    optional: bool = False
    """A pipeline is complete without an optional part. A fast decoder draws in place of the decoder. All other optional
    parts process the drawn images in turn."""


PARTS = {
    "clip": Part(
        {"transformer": Kind("unclip.clip.model:CLIP", "configs.clip:PRESETS", "stages.clip:CLIPStage")},
    ),
    "prior": Part(
        {
            "diffusion": Kind(
                "unclip.prior.diffusion_prior:DiffusionPrior", "configs.prior:PRESETS", "stages.prior:PriorStage"
            ),
            "mlp": Kind(
                "unclip.prior.mlp_prior:MLPPrior", "configs.mlp_prior:PRESETS", "stages.mlp_prior:MLPPriorStage"
            ),
            "one_pass": Kind(
                "unclip.prior.one_pass_prior:OnePassPrior",
                "configs.one_pass_prior:PRESETS",
                "stages.one_pass_prior:OnePassStage",
            ),
            "autoregressive": Kind(
                "unclip.prior.autoregressive_prior:AutoregressivePrior",
                "configs.autoregressive_prior:PRESETS",
                "stages.autoregressive_prior:AutoregressiveStage",
            ),
        },
        parents=("clip",),
    ),
    "decoder": Part(
        {
            "diffusion": Kind(
                "unclip.decoder.diffusion_decoder:DiffusionDecoder",
                "configs.decoder:PRESETS",
                "stages.decoder:DecoderStage",
            ),
            "text": Kind(
                "unclip.decoder.text_decoder:TextDecoder",
                "configs.text_decoder:PRESETS",
                "stages.text_decoder:TextDecoderStage",
            ),
        },
        parents=("clip",),
    ),
    "fast_decoder": Part(
        {
            "consistency": Kind(
                "unclip.decoder.consistency_decoder:ConsistencyDecoder",
                "configs.fast_decoder:PRESETS",
                "stages.fast_decoder:FastDecoderStage",
            )
        },
        parents=("clip", "decoder"),
        optional=True,
    ),
    "upsampler": Part(
        {
            "diffusion": Kind(
                "unclip.upsampler.diffusion_upsampler:DiffusionUpsampler",
                "configs.upsampler:PRESETS",
                "stages.upsampler:UpsamplerStage",
            )
        },
        parents=("clip",),
        optional=True,
    ),
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
    "consistency": SamplerRow("unclip.diffusion.samplers:consistency"),
}


def resolve(code: Any) -> Any:
    """The object that "module:attribute" names; anything but a string stands for itself."""
    if not isinstance(code, str):
        return code
    module, attribute = code.split(":")
    return getattr(importlib.import_module(module), attribute)


def default_kind(part: str) -> str:
    return next(iter(PARTS[part].kinds))


def find_kind(part: str, kind: str) -> Kind:
    """The table's row of a part's kind. Raises UserError if the table does not have it."""
    kinds = PARTS[part].kinds if part in PARTS else {}
    if kind not in kinds:
        raise UserError(f"there is no {part} of kind {kind!r} here; known are: {', '.join(kinds) or 'none'}")
    return kinds[kind]


def model_class(part: str, kind: str) -> type:
    """The model class of a part's kind. Raises UserError if the table does not have it."""
    return resolve(find_kind(part, kind).model)


def kind_of(part: str, model: Any) -> str | None:
    """The kind of a part that a model is of; None if the table has none."""
    kinds = PARTS[part].kinds
    return next((kind for kind in kinds if type(model) is model_class(part, kind)), None)


def choose_sampler(settings: Any) -> Callable:
    """The sampler that `DecoderSettings` name, with those of them that it reads."""
    row = SAMPLERS[settings.sampler]
    return partial(resolve(row.function), **{name: getattr(settings, name) for name in row.reads})
