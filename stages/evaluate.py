"""Measure a trained pipeline part by part, and say which stage is at fault.

    python -m stages.evaluate                                           # the committed pipeline, 1,000 samples
    python -m stages.evaluate --checkpoint checkpoints/run --samples 10000
    python -m stages.evaluate --checkpoint checkpoints/run --sweep 200  # also compares settings of sampling
    python -m stages.evaluate --checkpoint checkpoints/emoji --split validation
    python -m stages.evaluate --only error_budget few_calls             # these alone, and the floors

Prints a report, and writes it to --out as evaluation.json, as evaluation.md with pictures, and as evaluation.npz with
every image behind the figures. On two CPU cores 1,000 samples of the committed pipeline take six minutes. The first
time takes longer, as it trains and caches the judge of the samples. stages/evaluation/README.md explains the figures.
"""

from collections.abc import Sequence

from unclip.cli.run import run


def main(argv: Sequence[str] | None = None) -> None:
    from data.provenance import inherit_source
    from stages.data_config import DataConfig
    from stages.evaluation.evaluate import EvaluateOptions, evaluate
    from unclip.cli.options import parse, read_early_options
    from unclip.settings import SamplingOptions
    from unclip.store.hub import find_pipeline
    from unclip.store.index import read_sampling

    named = read_early_options(argv)
    checkpoint = find_pipeline(named.checkpoint or EvaluateOptions.checkpoint)
    data = inherit_source(checkpoint, DataConfig(), named.data)
    sampling = SamplingOptions.of(read_sampling(checkpoint), named.style or "clear")
    evaluate(parse(EvaluateOptions, __doc__, EvaluateOptions(data=data, sampling=sampling), argv))


if __name__ == "__main__":
    run(main)
