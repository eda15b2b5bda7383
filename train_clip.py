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
    from configs.clip import PRESETS
    from stages.clip import train
    from stages.data_config import on_pipeline
    from stages.runtime import is_main

    run = cli.parse_run(on_pipeline(PRESETS), __doc__)
    manifest = train(run)
    if is_main():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in manifest.figures.items())
        print(f"clip in {run.out / 'clip'}: {figures}")


if __name__ == "__main__":
    cli.run(main)
