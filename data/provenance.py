"""Provenance: the data that a pipeline was trained on.

The first stage records its source in its manifest. The later stages, the evaluation and the inspection read it there.
"""

import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from data.dataset import CaptionedImages
from data.file_patterns import exists_locally
from data.source_config import SHAPE_OPTIONS, STREAM_OPTIONS, SourceConfig, as_options
from data.sources import has_fixed_shape, is_available, is_named_source
from unclip.errors import UserError
from unclip.fields import from_dict
from unclip.registry import PARTS
from unclip.store.manifest import read_manifest

C = TypeVar("C", bound=SourceConfig)
Tell = Callable[[str], None]
"""Receives one line for the user."""
IGNORED = ("strict", "workers", "embed")
"""Options that do not change which data is read."""


def describe_source(config: SourceConfig, size: int) -> dict[str, Any]:
    """A source and its options, as a manifest holds them: with absolute paths and the size of the images."""
    ignored = IGNORED if config.stream else (*IGNORED, *STREAM_OPTIONS)
    values = {name: value for name, value in asdict(_with_absolute_paths(config)).items() if name not in ignored}
    values["size"] = None if has_fixed_shape(config.source) else size
    values["root"] = config.root and str(values["root"])
    return values


def read_provenance(pipeline: Path, plain: C) -> C | None:
    """The source that the first stage of a pipeline was trained on, in a config of the type of `plain`.

    Manifests of early versions hold only the name of the data. If it names a source, that is taken, with the options of
    `plain`. Returns None if no manifest says more. Raises UserError for a manifest that cannot be read.
    """
    names = []
    for folder in (pipeline / stage for stage in PARTS if (pipeline / stage / "config.json").is_file()):
        manifest = read_manifest(folder)
        if recorded := manifest.provenance:
            values = recorded | {"root": recorded.get("root") and Path(recorded["root"])}
            return from_dict(type(plain), values, f"provenance in {folder / 'config.json'}")
        names.append(str(manifest.data.get("name")).split("/")[0])
    return next((replace(plain, source=name) for name in names if is_named_source(name)), None)


def inherit_source(pipeline: Path, plain: C, source: str | None) -> C:
    """The defaults of the data options of a program that works on a pipeline: those that it was trained with.

    Args:
        plain: the defaults if the pipeline does not record its data. A size that it names stays: a decoder may draw
            smaller images than its CLIP sees.
        source: the source that --data names. If it is not the pipeline's, only the options on the size and the number
            of images are taken from the pipeline; the others are those of `plain`.
    """
    recorded = read_provenance(pipeline, plain)
    if recorded is None:
        return plain
    if source is None or _is_same_source(source, recorded.source):
        inherited = recorded
    else:
        names = ("limit",) if has_fixed_shape(source) else ("limit", *SHAPE_OPTIONS)
        inherited = replace(plain, source=source, **{name: getattr(recorded, name) for name in names})
    return inherited if has_fixed_shape(inherited.source) else replace(inherited, size=plain.size or inherited.size)


def compare_source(pipeline: Path, config: SourceConfig, tell: Tell = print) -> bool:
    """Whether a config names the data that a pipeline was trained on. Tells the data, or the options that differ.

    Raises UserError if the source is the same, but not on this machine.
    """
    recorded = read_provenance(pipeline, config)
    if recorded is None:
        return True
    if config.source == recorded.source and not is_available(recorded.source):
        raise UserError(
            f"{pipeline} was trained on {recorded.source}, which is not on this machine; name where it is: --data PATH"
        )
    current = _with_absolute_paths(replace(config, size=config.size or recorded.size))
    different = [
        name for name, value in asdict(current).items() if value != getattr(recorded, name) and name not in IGNORED
    ]
    current_options = shlex.join(as_options(current, different))
    if different:
        recorded_options = shlex.join(as_options(recorded, different))
        tell(f"{pipeline} was trained with {recorded_options}; this is with {current_options}")
    else:
        tell(f"data of {pipeline}: {current_options}")
    return not different


def compare_content(pipeline: Path, train: CaptionedImages, tell: Tell = print) -> None:
    """Tell if these images and captions are not those that the pipeline's first stage was trained on."""
    for stage in PARTS:
        if (pipeline / stage / "config.json").is_file() and (data := read_manifest(pipeline / stage).data):
            if data.get("fingerprint") != train.fingerprint:
                tell(f"{train.name} is not, or no longer, {data['name']} that the {stage} in {pipeline} was trained on")
            return


def _is_same_source(source: str, recorded: str) -> bool:
    """Whether a source is the recorded one, perhaps at a new place."""
    has_moved = not is_available(recorded) and Path(source).name == Path(recorded).name
    return os.path.abspath(source) == os.path.abspath(recorded) or has_moved


def _with_absolute_paths(config: C) -> C:
    """A config that means the same in any working directory."""
    is_path = not is_named_source(config.source) and exists_locally(config.source)
    return replace(
        config,
        source=os.path.abspath(config.source) if is_path else config.source,
        root=config.root and Path(os.path.abspath(config.root)),
    )
