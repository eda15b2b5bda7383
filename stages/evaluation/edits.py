"""Measure the edits of `unclip.edit` on real images, as the evaluation's classifier sees them.

    python -m stages.evaluation.edits                                   # the committed pipeline, 200 test images
    python -m stages.evaluation.edits --checkpoint checkpoints/run --images 20

Prints a table, and writes it to outputs/edits/NAME as edits.md and edits.json, with all images in edits.npz. Any
pipeline will do if its data has classes; only Fashion-MNIST also has the changes from dark to light and from narrow to
wide. On two CPU cores 200 images take twelve minutes. The first time takes longer, as it trains and caches the
classifier.
"""

from collections.abc import Sequence

from unclip.cli.run import run


def main(argv: Sequence[str] | None = None) -> None:
    from stages.evaluation.edit_report import EditsOptions, evaluate_edits
    from unclip.cli.options import parse

    evaluate_edits(parse(EditsOptions, __doc__, argv=argv))


if __name__ == "__main__":
    run(main)
