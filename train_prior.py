"""Train the diffusion prior on a frozen CLIP.

    python train_prior.py                             # preset quick, into checkpoints/run
    python train_prior.py --preset base --out checkpoints/base
    python train_prior.py --train.lr 1e-3 --help      # every option

The same command again goes on with a training that was interrupted.
"""

from collections.abc import Sequence

from unclip.cli.run import run


def main(argv: Sequence[str] | None = None) -> None:
    from stages.train import train_from_command_line

    train_from_command_line("prior", __doc__, argv)


if __name__ == "__main__":
    run(main)
