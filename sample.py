"""Draw images from captions with a trained pipeline: `unclip sample`, with the pipelines of this checkout.

python sample.py "an image of a sneaker" "an image of a bag" --n 8
python sample.py --help                                                # all options
"""

from collections.abc import Sequence
from pathlib import Path

from unclip.cli.run import run

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"


def main(argv: Sequence[str] | None = None) -> int | None:
    from unclip.cli.sample import main

    return main(argv, CHECKPOINTS)


if __name__ == "__main__":
    run(main)
