"""Presets of the fast decoder; its network is that of the decoder."""

from stages.data_config import DataConfig
from stages.fast_decoder import FastDecoderRun
from stages.loop import TrainConfig

PRESETS = {
    "tiny": FastDecoderRun(
        preset="tiny",
        levels=6,
        evaluate_on=50,
        train=TrainConfig(steps=20, batch_size=8, lr=1e-3, warmup=5, evaluate_every=10, preview_every=20, ema=0.9),
    ),
    "quick": FastDecoderRun(
        train=TrainConfig(
            steps=1000, batch_size=16, lr=3e-4, warmup=50, evaluate_every=250, preview_every=500, ema=0.99
        ),
    ),
    "small": FastDecoderRun(
        preset="small",
        levels=10,
        points=8,
        train=TrainConfig(
            steps=1_200, batch_size=16, lr=3e-4, warmup=20, evaluate_every=200, preview_every=400, ema=0.99
        ),
    ),
    "base": FastDecoderRun(
        preset="base",
        train=TrainConfig(
            steps=20_000,
            batch_size=128,
            lr=1e-4,
            warmup=500,
            evaluate_every=2_000,
            save_every=1_000,
            preview_every=4_000,
            ema=0.9995,
        ),
    ),
    # Luo et al. 2023 (arXiv 2310.04378) distil a decoder of that size in some 30 hours of an A100
    "paper": FastDecoderRun(
        preset="paper",
        data=DataConfig(size=64),
        train=TrainConfig(
            steps=50_000,
            batch_size=512,
            lr=2e-5,
            warmup=1_000,
            weight_decay=0.0,
            betas=(0.9, 0.999),
            ema=0.9999,
            evaluate_every=5_000,
            save_every=1_000,
            preview_every=10_000,
        ),
    ),
}
