"""The prior alone, on the test images: its embeddings beside the true ones."""

from dataclasses import replace

import torch

from stages.evaluation.metrics import distance_of_draws, mean_with_interval, same_group_cosine, share_of_gap
from stages.evaluation.section import EvaluationContext, Section
from stages.prior_figures import pair_cosines

GUIDANCE = (1.0, 1.5, 2.0, 4.0)
"""Guidance scales to measure, each with a single candidate; the pipeline's own settings come last."""
BATCH = 500


def measure_prior(context: EvaluationContext) -> Section:
    """Measure cosines to the true embeddings, with their ceiling and floors, and the spread within a caption."""
    pipe = context.pipe
    embedded = context.embedded_test
    test = embedded.data
    settings = pipe.sampling.prior
    count = min(context.sample_count, len(test))
    combinations = [*((1, guidance) for guidance in GUIDANCE), (settings.num_candidates, settings.guidance)]
    rows = []
    for num_candidates, guidance in dict.fromkeys(combinations):
        row_settings = replace(settings, num_candidates=num_candidates, guidance=guidance)
        cosines = pair_cosines(pipe.prior, embedded, count, row_settings)
        rows.append(
            {
                "prior_num_candidates": num_candidates,
                "prior_guidance": guidance,
                **{name: mean_with_interval(values) for name, values in cosines.items()},
                "gap_closed": share_of_gap(cosines["sample"], cosines["text"], cosines["ceiling"]),
                "distance": distance_of_draws(cosines["sample"], cosines["redrawn"], cosines["ceiling"]),
            }
        )
    classes = len(test.classes)
    n = max(2, count // classes)
    samples = pipe.embed(test.class_captions, n, context.seed, prior_num_candidates=1, batch_size=BATCH).cpu()
    sample_groups = torch.arange(classes).repeat_interleave(n)
    return Section(
        {
            "cosines": rows,
            "spread_of_draws": mean_with_interval(1 - same_group_cosine(samples, sample_groups)),
            "spread_of_real": mean_with_interval(1 - same_group_cosine(embedded.embeddings, test.labels)),
        }
    )
