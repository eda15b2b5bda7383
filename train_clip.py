"""Train CLIP from scratch on captioned images.

    python train_clip.py                             # preset quick, into checkpoints/run
    python train_clip.py --preset base --out checkpoints/base
    python train_clip.py --train.lr 1e-3 --help      # every option

The same command again goes on with a training that was interrupted.
"""

from collections.abc import Sequence

from unclip.cli.run import run


def main(argv: Sequence[str] | None = None) -> None:
    from stages.train import train_from_command_line

    train_from_command_line("clip", __doc__, argv)


if __name__ == "__main__":
    run(main)
