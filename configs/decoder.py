"""Presets of the decoder."""

from stages.data import DataConfig
from stages.decoder import DecoderRun
from stages.loop import TrainConfig
from unclip.decoder import DecoderConfig

PRESETS = {
    "tiny": DecoderRun(
        preset="tiny",
        evaluate_on=100,
        data=DataConfig(limit=2000),
        model=DecoderConfig(space_to_depth=2, width=16, multipliers=(1, 2), blocks=1, condition_width=32, head_dim=16),
        train=TrainConfig(steps=60, batch_size=32, lr=2e-3, warmup=10, evaluate_every=30, preview_every=60, ema=0.9),
    ),
    "quick": DecoderRun(
        evaluate_on=500,
        model=DecoderConfig(space_to_depth=2, width=40, multipliers=(1, 2), blocks=1, attention_levels=(1,)),
        train=TrainConfig(
            steps=1250,
            batch_size=32,
            lr=1e-3,
            muon_lr=5e-3,
            warmup=100,
            evaluate_every=625,
            preview_every=625,
            ema=0.995,
        ),
    ),
    "small": DecoderRun(
        preset="small",
        drop_text=0.2,
        embedding_noise=0.15,
        model=DecoderConfig(
            space_to_depth=2, width=64, multipliers=(1, 2), blocks=1, attention_levels=(1,), text_layers=2
        ),
        # 5 epochs of the 51,374 training images
        train=TrainConfig(
            steps=4_000,
            batch_size=64,
            lr=1e-3,
            muon_lr=5e-3,
            warmup=200,
            evaluate_every=500,
            preview_every=1_000,
            ema=0.999,
        ),
    ),
    "base": DecoderRun(
        preset="base",
        model=DecoderConfig(
            space_to_depth=1, width=32, multipliers=(1, 2, 4, 8), blocks=2, attention_levels=(2, 3), condition_width=256
        ),
        # 100 epochs of the 51,374 training images
        train=TrainConfig(
            steps=40_100,
            batch_size=128,
            lr=3e-4,
            warmup=2_000,
            evaluate_every=2_000,
            save_every=1_000,
            preview_every=4_000,
            ema=0.9999,
        ),
    ),
}
