"""Train CLIP from scratch on captioned images.

    python train_clip.py                             # preset quick, into checkpoints/run
    python train_clip.py --preset base --out checkpoints/base
    python train_clip.py --train.lr 1e-3 --help      # every option

The same command again goes on with a training that was interrupted.
"""

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip.cli import signals

    signals.install()

from unclip.cli import options as cli


def main() -> None:
    from stages.train import train_from_command_line

    train_from_command_line("clip", __doc__)


if __name__ == "__main__":
    cli.run(main)
