"""Measure a trained pipeline, stage by stage, and say which stage is at fault.

    python -m stages.evaluate                                           # the committed pipeline, 1,000 samples
    python -m stages.evaluate --checkpoint checkpoints/run --samples 10000
    python -m stages.evaluate --checkpoint checkpoints/run --sweep 200  # and a grid of guidance, steps and samplers
    python -m stages.evaluate --checkpoint checkpoints/emoji --split validation

Prints a report, and writes it to --out as evaluation.json, as evaluation.md with pictures, and as evaluation.npz with
every image that the figures were taken on. On two CPU cores 1,000 samples of preset quick take four minutes, and some
more the first time: the judge of the samples is trained on the real images, and cached.
"""

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip import signals

    signals.install()

from pathlib import Path

from data.remembered import default
from stages.data import DataConfig
from stages.evaluation.main import EvaluateOptions, evaluate
from unclip import cli
from unclip.index import read_sampling
from unclip.settings import SamplingOptions


def main() -> None:
    checkpoint = Path(cli.argument("checkpoint", str(EvaluateOptions.checkpoint)))
    data = default(checkpoint, DataConfig())
    own = EvaluateOptions(data=data, sampling=SamplingOptions.of(read_sampling(checkpoint)))
    evaluate(cli.parse(EvaluateOptions, __doc__, own))


if __name__ == "__main__":
    cli.run(main)
