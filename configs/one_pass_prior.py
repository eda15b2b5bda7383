"""Presets of the one-pass prior: the diffusion prior's network, trained as long."""

from configs.prior import PRESETS as DIFFUSION_PRESETS
from stages.one_pass_prior import OnePassRun
from unclip.prior.one_pass_prior import OnePassPriorConfig

PRESETS = {
    name: OnePassRun(
        preset=name,
        hide_tokens=run.hide_tokens,
        evaluate_on=run.evaluate_on,
        data=run.data,
        train=run.train,
        sampling=run.sampling,
        model=OnePassPriorConfig(run.model.network),
    )
    for name, run in DIFFUSION_PRESETS.items()
}
