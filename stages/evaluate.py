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
    from unclip.cli import signals

    signals.install()

from data.provenance import inherit_source
from stages.data_config import DataConfig
from stages.evaluation.evaluate import EvaluateOptions, evaluate
from unclip.cli import options as cli
from unclip.settings import SamplingOptions
from unclip.store.hub import find_pipeline
from unclip.store.index import read_sampling


def main() -> None:
    checkpoint = find_pipeline(cli.argument("checkpoint", str(EvaluateOptions.checkpoint)))
    style = cli.argument("sampling.style", "clear")
    sampling = SamplingOptions.of(read_sampling(checkpoint), style)
    own = EvaluateOptions(data=inherit_source(checkpoint, DataConfig()), sampling=sampling)
    evaluate(cli.parse(EvaluateOptions, __doc__, own))


if __name__ == "__main__":
    cli.run(main)
