"""What a pipeline was trained on: its first stage notes it in its manifest, and all that comes after reads it there."""

import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from data.dataset import CaptionedImages
from data.sources import NAMES, SHAPE, SourceConfig, as_options, is_there
from unclip.errors import UserError
from unclip.fields import from_dict
from unclip.registry import PARTS
from unclip.store.manifest import read_manifest

C = TypeVar("C", bound=SourceConfig)
Tell = Callable[[str], None]
ASIDE = ("strict",)
"""What decides nothing of what is read."""


def describe_source(config: SourceConfig, size: int) -> dict[str, Any]:
    """A source and its options as a manifest keeps them: with whole paths, and the size of the images."""
    values = {name: value for name, value in asdict(_whole(config)).items() if name not in ASIDE}
    size = None if config.source == "fashion-mnist" else size  # which takes none
    return values | {"size": size, "root": config.root and str(values["root"])}


def read_provenance(pipeline: Path, plain: C) -> C | None:
    """What the first stage of a pipeline was trained on, in a config of the kind of `plain`.

    A stage of before there were notes names its data all the same: one of `NAMES` is taken, with plain's options. None
    where nothing says it. Raises UserError for a manifest that cannot be read.
    """
    names = []
    for folder in (pipeline / stage for stage in PARTS if (pipeline / stage / "config.json").is_file()):
        manifest = read_manifest(folder)
        if noted := manifest.provenance:
            values = noted | {"root": noted.get("root") and Path(noted["root"])}
            return from_dict(type(plain), values, f"provenance in {folder / 'config.json'}")
        names.append(str(manifest.data.get("name")).split("/")[0])
    return next((replace(plain, source=name) for name in names if name in NAMES), None)


def inherit_source(pipeline: Path, plain: C, source: str | None) -> C:
    """The defaults of the data options of a program that works on a pipeline: those that it was trained with.

    Args:
        pipeline: its folder.
        plain: the defaults where the pipeline does not say what it was trained on.
        source: the source that --data names. If it is another than the pipeline's, only the size and the number of the
            images are taken from the pipeline; the rest is as in `plain`.
    """
    provenance = read_provenance(pipeline, plain)
    if provenance is None:
        return plain
    if source is None or _same(source, provenance.source):
        return provenance
    inherited = ("limit",) if source == "fashion-mnist" else ("limit", *SHAPE)
    return replace(plain, source=source, **{name: getattr(provenance, name) for name in inherited})


def compare_source(pipeline: Path, config: SourceConfig, tell: Tell = print) -> bool:
    """Whether the data is what the pipeline was trained on, by its options; a line tells which differ, or what is read.

    Raises UserError if the source is the same, but not on this machine.
    """
    noted = read_provenance(pipeline, config)
    if noted is None:
        return True
    if config.source == noted.source and not is_there(noted.source):
        raise UserError(
            f"{pipeline} was trained on {noted.source}, which is not on this machine; name where it is: --data PATH"
        )
    ours = _whole(replace(config, size=config.size or noted.size))
    differ = [name for name, value in asdict(ours).items() if value != getattr(noted, name) and name not in ASIDE]
    here, there = (shlex.join(as_options(one, differ)) for one in (ours, noted))
    tell(f"{pipeline} was trained with {there}; this is with {here}" if differ else f"data of {pipeline}: {here}")
    return not differ


def compare_content(pipeline: Path, train: CaptionedImages, tell: Tell = print) -> None:
    """Tell in a line if these are not the training images and captions of the pipeline's first stage."""
    for stage in PARTS:
        if (pipeline / stage / "config.json").is_file() and (data := read_manifest(pipeline / stage).data):
            if data.get("fingerprint") != train.fingerprint:
                tell(f"{train.name} is not, or no longer, {data['name']} that the {stage} in {pipeline} was trained on")
            return


def _same(given: str, noted: str) -> bool:
    """Whether a source is the one that was noted, or that one in a new place."""
    moved = not is_there(noted) and Path(given).name == Path(noted).name
    return os.path.abspath(given) == os.path.abspath(noted) or moved


def _whole(config: C) -> C:
    """A config with whole paths, so that it means the same in any folder."""
    local = config.source not in NAMES and Path(config.source).exists()
    return replace(
        config,
        source=os.path.abspath(config.source) if local else config.source,
        root=config.root and Path(os.path.abspath(config.root)),
    )
