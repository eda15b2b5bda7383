"""Presets of the autoregressive prior: a transformer as large as the diffusion prior's, trained as long."""

from dataclasses import asdict

from configs.prior import PRESETS as DIFFUSION_PRESETS
from stages.autoregressive_prior import AutoregressiveRun
from unclip.prior.autoregressive_model import AutoregressiveConfig
from unclip.prior.autoregressive_prior import AutoregressivePriorConfig

BUCKETS = {"tiny": 32, "quick": 64, "small": 128, "base": 256, "paper": 1024}
PRESETS = {
    name: AutoregressiveRun(
        preset=name,
        hide_tokens=run.hide_tokens,
        evaluate_on=run.evaluate_on,
        data=run.data,
        train=run.train,
        sampling=run.sampling,
        model=AutoregressivePriorConfig(AutoregressiveConfig(**asdict(run.model.network), buckets=BUCKETS[name])),
    )
    for name, run in DIFFUSION_PRESETS.items()
}
