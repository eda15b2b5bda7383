"""Presets of the prior whose network is an MLP: as many parameters as the transformer's, trained as long."""

from configs.prior import PRESETS as TRANSFORMER_PRESETS
from stages.mlp_prior import MLPPriorRun
from unclip.prior.mlp_model import MLPConfig
from unclip.prior.mlp_prior import MLPPriorConfig

NETWORKS = {
    "tiny": MLPConfig(width=48, layers=2),
    "quick": MLPConfig(width=240, layers=4),
    "small": MLPConfig(width=240, layers=6),
    "base": MLPConfig(width=512, layers=6),
    "paper": MLPConfig(width=4096, layers=24),
}
PRESETS = {
    name: MLPPriorRun(
        preset=name,
        evaluate_on=run.evaluate_on,
        log_sigma=run.log_sigma,
        whitening=run.whitening,
        data=run.data,
        train=run.train,
        sampling=run.sampling,
        model=MLPPriorConfig(NETWORKS[name]),
    )
    for name, run in TRANSFORMER_PRESETS.items()
}
