"""Train all kinds of prior on a pipeline's CLIP, with equal parameters for equal time, and print how good they are.

    python -m stages.priors                                             # the committed pipeline's CLIP and decoder
    python -m stages.priors --checkpoint checkpoints/run --seconds 60 --seeds 1 --samples 200 --out outputs/priors-run
    python -m stages.priors --rows diffusion autoregressive             # some of the rows
    python -m stages.priors --rows diffusion v larger                   # ablations: one thing changed in the prior

Writes every training and its figures into --out, and the tables to priors.md there. The same command goes on where it
was interrupted. Rows and seeds may be added; anything else needs another --out. unclip/prior/README.md explains the
figures.
"""

from collections.abc import Sequence

from unclip.cli.run import run


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program. It is imported only here, as that may take seconds."""
    from data.provenance import inherit_source
    from stages.data_config import DataConfig
    from stages.priors.comparison import ComparisonOptions, compare_priors
    from unclip.cli.options import parse, read_early_options
    from unclip.store.hub import find_pipeline

    named = read_early_options(argv)
    data = inherit_source(find_pipeline(named.checkpoint or ComparisonOptions.checkpoint), DataConfig(), named.data)
    compare_priors(parse(ComparisonOptions, __doc__, ComparisonOptions(data=data), argv))


if __name__ == "__main__":
    run(main)
