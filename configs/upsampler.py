"""Presets of the upsampler."""

from dataclasses import replace

from stages.loop import TrainConfig
from stages.upsampler import UpsamplerRun
from unclip.upsampler import DiffusionUpsamplerConfig, UpsamplerConfig
from unclip.upsampler.model import LOCAL_UNET

PRESETS = {
    "tiny": UpsamplerRun(
        preset="tiny",
        evaluate_on=8,
        model=DiffusionUpsamplerConfig(UpsamplerConfig(replace(LOCAL_UNET, width=8, multipliers=(1, 2)), factor=2)),
        train=TrainConfig(steps=20, batch_size=8, lr=2e-3, warmup=5, evaluate_every=10, preview_every=20, ema=0.9),
    ),
    "quick": UpsamplerRun(
        evaluate_on=40,
        model=DiffusionUpsamplerConfig(UpsamplerConfig(LOCAL_UNET)),
        train=TrainConfig(
            steps=600,
            batch_size=16,
            lr=1e-3,
            muon_lr=5e-3,
            warmup=100,
            evaluate_every=300,
            preview_every=300,
            ema=0.99,
        ),
    ),
    "small": UpsamplerRun(
        preset="small",
        evaluate_on=40,
        model=DiffusionUpsamplerConfig(UpsamplerConfig(LOCAL_UNET)),
        train=TrainConfig(
            steps=2_500,
            batch_size=16,
            lr=1e-3,
            muon_lr=5e-3,
            warmup=200,
            evaluate_every=500,
            preview_every=1_250,
            ema=0.997,
        ),
    ),
    "base": UpsamplerRun(
        preset="base",
        model=DiffusionUpsamplerConfig(
            UpsamplerConfig(replace(LOCAL_UNET, space_to_depth=1, width=64, multipliers=(1, 2, 4), blocks=2))
        ),
        train=TrainConfig(
            steps=100_000,
            batch_size=128,
            lr=3e-4,
            warmup=2_000,
            evaluate_every=5_000,
            save_every=1_000,
            preview_every=10_000,
            ema=0.9999,
        ),
    ),
    # Ramesh et al. 2022, appendix C, table 3: the upsampler from 64x64 to 256x256
    "paper": UpsamplerRun(
        preset="paper",
        blur=0.6,
        model=DiffusionUpsamplerConfig(
            UpsamplerConfig(replace(LOCAL_UNET, space_to_depth=1, width=320, multipliers=(1, 2, 3, 4), blocks=3))
        ),
        train=TrainConfig(
            steps=1_000_000,
            batch_size=1024,
            lr=1.2e-4,
            warmup=2_000,
            weight_decay=0.0,
            betas=(0.9, 0.999),
            ema=0.9999,
            evaluate_every=10_000,
            save_every=1_000,
            preview_every=10_000,
        ),
    ),
}
