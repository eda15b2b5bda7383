"""Presets of the prior."""

from dataclasses import replace

from stages.data_config import DataConfig
from stages.loop import TrainConfig
from stages.prior import PriorRun
from unclip.prior import DiffusionPriorConfig, PriorConfig
from unclip.settings import PriorSettings

JUDGED_BY_IMAGE = PriorSettings(spacing="karras", threshold=0.5, redraws=3, image_threshold=0.6)
"""Draws doubtful images anew, and is less strict with embeddings: as many images are right, and closer to real ones."""

PRESETS = {
    "tiny": PriorRun(
        preset="tiny",
        evaluate_on=200,
        data=DataConfig(limit=2000),
        model=DiffusionPriorConfig(PriorConfig(width=32, layers=2, heads=2)),
        train=TrainConfig(steps=60, batch_size=64, lr=2e-3, warmup=10, evaluate_every=30, preview_every=60, ema=0.9),
    ),
    "quick": PriorRun(
        evaluate_on=500,
        # With many candidates captions such as "a wide sneaker" are obeyed more often. Single draws are less often
        # right than after longer trainings, so more of them are drawn anew.
        sampling=replace(JUDGED_BY_IMAGE, steps=10, num_candidates=16, image_threshold=0.75),
        model=DiffusionPriorConfig(PriorConfig(width=128, layers=4, heads=4)),
        train=TrainConfig(
            steps=600, batch_size=64, lr=1e-3, muon_lr=4e-3, warmup=60, evaluate_every=300, preview_every=600, ema=0.99
        ),
    ),
    "small": PriorRun(
        preset="small",
        sampling=replace(JUDGED_BY_IMAGE, num_candidates=2),
        model=DiffusionPriorConfig(PriorConfig(width=128, layers=6, heads=4)),
        # 2 epochs of the 51,374 training images
        train=TrainConfig(
            steps=1_600,
            batch_size=64,
            lr=1e-3,
            muon_lr=4e-3,
            warmup=100,
            evaluate_every=400,
            preview_every=800,
            ema=0.998,
        ),
    ),
    "base": PriorRun(
        preset="base",
        model=DiffusionPriorConfig(PriorConfig(width=256, layers=6, heads=8)),
        # 150 epochs of the 51,374 training images
        train=TrainConfig(
            steps=60_200,
            batch_size=128,
            lr=5e-4,
            warmup=2_000,
            evaluate_every=2_000,
            save_every=1_000,
            preview_every=4_000,
            ema=0.9999,
        ),
    ),
    # Ramesh et al. 2022, appendix C, table 3; theirs reads captions with a text encoder of its own, of 256 tokens
    "paper": PriorRun(
        preset="paper",
        hide_tokens=False,
        log_sigma=None,
        whitening=None,
        sampling=PriorSettings(steps=64, spacing="karras", num_candidates=2),
        data=DataConfig(size=256),
        model=DiffusionPriorConfig(PriorConfig(width=2048, layers=24, heads=32)),
        train=TrainConfig(
            steps=600_000,
            batch_size=4096,
            lr=1.1e-4,
            warmup=2_000,
            weight_decay=0.06,
            betas=(0.9, 0.96),
            ema=0.9999,
            evaluate_every=10_000,
            save_every=1_000,
            preview_every=10_000,
        ),
    ),
}
