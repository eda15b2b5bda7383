"""Train the diffusion prior whose network is an MLP: batches and loss are those of the transformer."""

from dataclasses import dataclass
from typing import ClassVar

from stages.prior import PriorRun, PriorStage
from unclip.fields import bounded
from unclip.prior.mlp_prior import MLPPrior, MLPPriorConfig


@dataclass(frozen=True)
class MLPPriorRun(PriorRun):
    kind: str = bounded("mlp", affects_weights=False)
    """Kind of the prior, of those in unclip/registry.py."""
    hide_tokens: bool = False
    """Hide a random share of each caption's tokens. This kind reads none of them."""
    model: MLPPriorConfig = bounded(MLPPriorConfig(), affects_weights=False)  # type: ignore[assignment]


class MLPPriorStage(PriorStage):
    model_class: ClassVar[type] = MLPPrior
