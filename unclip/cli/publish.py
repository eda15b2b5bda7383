"""Make a trained pipeline ready to hand out: its weights in float16, half the size, without the states of training.

    unclip publish checkpoints/run checkpoints/published
    unclip publish checkpoints/run --to-hub owner/name            # log in first: hf auth login

README.md becomes a model card in the Hugging Face Hub's form: licence, data, recipe, figures, and a grid of samples.
The report of `python -m stages.evaluate` joins it if it is of the same weights. To change the card by hand, publish
into a folder, and upload that with: hf upload OWNER/NAME DIR. A repository that does not exist yet is made, and is
public; for a private one make it on the Hub first. Hashes and lineage are renewed. Weights are read back as float32;
rounding them moves samples by hardly a grey level.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unclip.cli.options import parse
from unclip.errors import UserError


@dataclass(frozen=True)
class PublishOptions:
    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a pipeline whose parts are trained."""
    target: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder to write; it must not hold a pipeline yet. With --to-hub it may be left out."""
    to_hub: str | None = None
    """Also put it on the Hugging Face Hub under this name, OWNER/NAME."""
    license: str | None = None
    """Licence of the weights, in the Hub's spelling: mit, cc-by-4.0 (default: that of the data, where it is known)."""
    evaluation: Path | None = None
    """Folder with the report of `python -m stages.evaluate` (default: outputs/evaluation/NAME)."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(PublishOptions, __doc__, argv=argv)
    name = options.to_hub or (options.target.resolve().name if options.target else "")
    if not name:
        raise UserError("nowhere to publish to; name a folder, or --to-hub OWNER/NAME, or both")

    from unclip.store.hub import check_upload, upload
    from unclip.store.publish import publish

    if options.to_hub:
        check_upload(options.to_hub)
    if options.evaluation and not (options.evaluation / "evaluation.json").is_file():
        raise UserError(f"{options.evaluation} holds no evaluation.json; make one with: python -m stages.evaluate")
    evaluation = options.evaluation or Path("outputs") / "evaluation" / options.source.resolve().name
    with tempfile.TemporaryDirectory() as temporary:
        target = options.target or Path(temporary)
        files = publish(options.source, target, name, options.license, evaluation)
        size = sum((target / file).stat().st_size for file in files)
        where = upload(target, options.to_hub, files) if options.to_hub else target
    print(f"{where}: {size / 1e6:.1f} MB")
