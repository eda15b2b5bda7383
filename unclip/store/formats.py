"""The formats of a pipeline's files, and how content of an older format becomes content of the newest on reading.

`CHANGES` holds, for each older format, what the format after it calls otherwise, as tables; the functions apply these
tables one format after the other. Nothing is translated on disk: checksums and lineage are those of the files as they
are. For a new format add 1 to `FORMAT` and a row to `CHANGES`, and put a small pipeline of the format into
tests/pipelines.

Format 4 renamed stage -> part and source -> provenance, gave settings of sampling the names that the field uses, and
put the networks of prior and decoder apart from their diffusion and reranking: their configs are nested, and the names
of their weights begin with "network.". Format 5 lets priors scale embeddings along other axes than CLIP's coordinates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip.errors import UserError

if TYPE_CHECKING:  # importing torch takes seconds, and manifests are read where no tensor is
    from torch import Tensor

FORMAT = 5
"""The format that is written."""
OLDEST_FORMAT = 3
"""The oldest format that is read."""

FIRST_KINDS = {"clip": "transformer", "prior": "diffusion", "decoder": "diffusion"}
"""Kinds of the parts whose manifests are older than the choice between several."""

Kind = tuple[str, str]
"""A part of a pipeline and its kind, such as ("prior", "diffusion")."""
Tensors = dict[str, "Tensor"]
"""Weights by name."""


@dataclass(frozen=True)
class Changes:
    """What differs between a format and the one before it. Names that are not in a table stay."""

    manifest: Mapping[str, str] = field(default_factory=dict)
    """Keys of config.json: old -> new."""
    index: Mapping[str, str] = field(default_factory=dict)
    """Keys of model_index.json: old -> new."""
    sampling: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Settings of sampling, by part: old -> new."""
    config: Mapping[Kind, Mapping[str, str]] = field(default_factory=dict)
    """Fields of models' configs, by kind: old -> new, where "network.width" is the field `width` of `network`."""
    config_additions: Mapping[Kind, Mapping[str, Any]] = field(default_factory=dict)
    """Fields that the old format had no choice of, by kind, with their values."""
    tensors: Mapping[Kind, Mapping[str, str]] = field(default_factory=dict)
    """Beginnings of the names of weights, by kind: old -> new. The first that fits is replaced."""
    tensor_additions: Mapping[Kind, Mapping[str, tuple[str, "Callable[[Tensor], Tensor]"]]] = field(
        default_factory=dict
    )
    """Weights that the old format lacked, by kind: new -> the weight that they follow from, and how."""


def identity_like(weight: "Tensor") -> "Tensor":
    """An identity matrix in the shape of another weight, so no larger than the file; zeros if that is no matrix."""
    zeros = weight.new_zeros(weight.shape).float()
    return zeros.fill_diagonal_(1) if zeros.ndim == 2 else zeros


CHANGES: dict[int, Changes] = {
    3: Changes(
        manifest={"stage": "part", "source": "provenance"},
        index={"stages": "parts"},
        sampling={
            "prior": {"draws": "num_candidates", "accept": "threshold"},
            "decoder": {"tries": "num_candidates"},
        },
        config={
            ("prior", "diffusion"): {
                "embed_dim": "network.embed_dim",
                "text_width": "network.text_width",
                "context": "network.context",
                "width": "network.width",
                "layers": "network.layers",
                "heads": "network.heads",
                "timesteps": "diffusion.timesteps",
                "schedule": "diffusion.schedule",
                "rivals": "num_classes",
            },
            ("decoder", "diffusion"): {
                "space_to_depth": "network.unet.space_to_depth",
                "width": "network.unet.width",
                "multipliers": "network.unet.multipliers",
                "blocks": "network.unet.blocks",
                "attention_levels": "network.unet.attention_levels",
                "head_dim": "network.unet.head_dim",
                "condition_width": "network.unet.condition_width",
                "embed_dim": "network.embed_dim",
                "text_width": "network.text_width",
                "image_size": "network.image_size",
                "channels": "network.channels",
                "image_tokens": "network.image_tokens",
                "text": "network.text",
                "text_layers": "network.text_layers",
                "timesteps": "diffusion.timesteps",
                "schedule": "diffusion.schedule",
                "prediction": "diffusion.prediction",
            },
        },
        config_additions={
            ("prior", "diffusion"): {"diffusion.process": "variance_preserving", "diffusion.prediction": "x0"},
            ("decoder", "diffusion"): {"diffusion.process": "variance_preserving"},
        },
        tensors={
            ("prior", "diffusion"): {
                "scaler.": "scaler.",
                "choice.rivals": "reranker.class_embeddings",
                "choice.scale": "reranker.logit_scale",
                "": "network.",
            },
            ("decoder", "diffusion"): {"": "network."},
        },
    ),
    4: Changes(
        tensor_additions={
            ("prior", kind): {"scaler.axes": ("network.regression.weight", identity_like)}
            for kind in ("diffusion", "mlp", "one_pass")
        },
    ),
}
"""Old format -> the changes of the next."""


def check_format(values: Any, path: Path, advice: str) -> int:
    """The format of a file's content. Raises UserError, ending in `advice`, if this version does not read it."""
    version = values.get("format") if isinstance(values, dict) else None
    if type(version) is not int or not OLDEST_FORMAT <= version <= FORMAT:
        readable = f"{OLDEST_FORMAT} to {FORMAT}"
        raise UserError(f"{path} has format {version}, but this version reads the formats {readable}; {advice}")
    return version


def upgrade_manifest(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json under the newest names. Its "format" stays: it is that of the weights beside it."""
    for changes in _changes_since(values["format"]):
        values = _rename_keys(values, changes.manifest)
        part = values.get("part", "")
        kind = part, values.get("kind") or FIRST_KINDS.get(part, "")
        values["sampling"] = _rename_keys(values.get("sampling", {}), changes.sampling.get(part, {}))
        values["model"] = _move_fields(
            {**changes.config_additions.get(kind, {}), **values.get("model", {})}, changes.config.get(kind, {})
        )
    return values


def upgrade_index(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a model_index.json under the newest names."""
    for changes in _changes_since(values["format"]):
        values = _rename_keys(values, changes.index)
        sampling = values.get("sampling")
        if isinstance(sampling, dict):
            values["sampling"] = {
                part: _rename_keys(settings, changes.sampling.get(part, {})) for part, settings in sampling.items()
            }
    return values


def upgrade_tensors(tensors: Tensors, part: str, kind: str, version: int) -> Tensors:
    """A part's weights, which were stored in the format `version`, under the newest names."""
    for changes in _changes_since(version):
        prefixes = changes.tensors.get((part, kind), {})
        tensors = {_replace_prefix(name, prefixes): tensor for name, tensor in tensors.items()}
        for name, (source, make) in changes.tensor_additions.get((part, kind), {}).items():
            if source in tensors:
                tensors[name] = make(tensors[source])
    return tensors


def _changes_since(version: int) -> list[Changes]:
    return [CHANGES[older] for older in range(version, FORMAT)]


def _rename_keys(values: Any, names: Mapping[str, str]) -> Any:
    """A dict under other keys, in the same order; anything else, which the reader will refuse, as it is."""
    return {names.get(key, key): value for key, value in values.items()} if isinstance(values, dict) else values


def _move_fields(config: dict[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """A config whose fields are put where `places` says: {"width": 8} -> {"network": {"width": 8}}."""
    moved: dict[str, Any] = {}
    for name, value in config.items():
        *parents, last = places.get(name, name).split(".")
        inner = moved
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return moved


def _replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
