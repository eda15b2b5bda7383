"""Presets of the decoder."""

from stages.data_config import DataConfig
from stages.decoder import DecoderRun
from stages.loop import TrainConfig
from unclip.decoder import DecoderConfig, DiffusionDecoderConfig, UNetConfig
from unclip.diffusion import ProcessConfig
from unclip.settings import DecoderSettings

PRESETS = {
    "tiny": DecoderRun(
        preset="tiny",
        evaluate_on=100,
        data=DataConfig(limit=2000),
        model=DiffusionDecoderConfig(
            DecoderConfig(
                UNetConfig(space_to_depth=2, width=16, multipliers=(1, 2), blocks=1, condition_width=32, head_dim=16)
            )
        ),
        train=TrainConfig(steps=60, batch_size=32, lr=2e-3, warmup=10, evaluate_every=30, preview_every=60, ema=0.9),
    ),
    "quick": DecoderRun(
        evaluate_on=500,
        log_sigma=(-0.2, 0.8),  # narrower than others: closer to real images in so few steps
        model=DiffusionDecoderConfig(
            DecoderConfig(UNetConfig(space_to_depth=2, width=40, multipliers=(1, 2), blocks=1, attention_levels=(1,)))
        ),
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
        model=DiffusionDecoderConfig(
            DecoderConfig(UNetConfig(space_to_depth=2, width=48, multipliers=(1, 2), blocks=1, attention_levels=(1,)))
        ),
        # 6 epochs of the 51,374 training images
        train=TrainConfig(
            steps=4_800,
            batch_size=64,
            lr=1e-3,
            muon_lr=5e-3,
            warmup=200,
            evaluate_every=800,
            preview_every=2_400,
            ema=0.999,
        ),
    ),
    "base": DecoderRun(
        preset="base",
        model=DiffusionDecoderConfig(
            DecoderConfig(
                UNetConfig(
                    space_to_depth=1,
                    width=32,
                    multipliers=(1, 2, 4, 8),
                    blocks=2,
                    attention_levels=(2, 3),
                    condition_width=256,
                )
            )
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
    # Ramesh et al. 2022, appendix C, table 3: GLIDE's 64x64 model with its text transformer; theirs also learns the
    # variance, draws its noise levels evenly in time, and has upsamplers to 256x256 and 1024x1024, which are not here
    "paper": DecoderRun(
        preset="paper",
        sampling=DecoderSettings(steps=250, sampler="ddpm", spacing="even"),
        data=DataConfig(size=64),
        model=DiffusionDecoderConfig(
            DecoderConfig(
                UNetConfig(
                    space_to_depth=1,
                    width=512,
                    multipliers=(1, 2, 3, 4),
                    blocks=3,
                    attention_levels=(1, 2, 3),
                    head_dim=64,
                    condition_width=2048,
                ),
                image_size=64,
                channels=3,
                text_layers=24,
            ),
            ProcessConfig(prediction="eps"),
        ),
        train=TrainConfig(
            steps=800_000,
            batch_size=2048,
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
