"""A picture of the denoising: ten moments of one sample per caption."""

from stages.evaluation.section import EvaluationContext, Section
from unclip.trajectory import Trajectory, denoising_strip

CAPTIONS = 3
"""The number of captions in the picture."""


def draw_denoising(context: EvaluationContext) -> Section:
    """Draw the picture."""
    captions = context.captions[:CAPTIONS]
    trajectory = Trajectory()
    settings = {"fast_steps": 0} if context.draws_fast else {}  # few calls have no ten moments
    context.pipe(captions, seed=context.seed, on_step=trajectory, **settings)
    return Section(pictures={"strip": denoising_strip(captions, trajectory, 1)})
