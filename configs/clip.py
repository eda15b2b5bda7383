"""Presets of CLIP."""

from stages.clip import AugmentConfig, CLIPRun
from stages.data_config import DataConfig
from stages.loop import TrainConfig
from unclip.clip import CLIPConfig, TextConfig, VisionConfig

PRESETS = {
    "tiny": CLIPRun(
        preset="tiny",
        data=DataConfig(limit=2000),
        model=CLIPConfig(
            embed_dim=32,
            vision=VisionConfig(patch_size=7, width=32, layers=2, heads=2),
            text=TextConfig(width=32, layers=2, heads=2),
        ),
        train=TrainConfig(steps=60, batch_size=64, lr=2e-3, warmup=10, evaluate_every=30, preview_every=60, ema=0.9),
    ),
    "quick": CLIPRun(
        model=CLIPConfig(
            embed_dim=128,
            vision=VisionConfig(patch_size=7, width=128, layers=4, heads=4),
            text=TextConfig(width=128, layers=2, heads=4),
        ),
        augment=AugmentConfig(flip=False, shift=0),  # it sees each image hardly more than once
        train=TrainConfig(
            steps=1000,
            batch_size=64,
            lr=1e-3,
            muon_lr=3e-3,
            warmup=60,
            evaluate_every=500,
            preview_every=1000,
            ema=0.99,
        ),
    ),
    "small": CLIPRun(
        preset="small",
        model=CLIPConfig(
            embed_dim=128,
            vision=VisionConfig(patch_size=7, width=128, layers=6, heads=4),
            text=TextConfig(width=128, layers=2, heads=4),
        ),
        augment=AugmentConfig(flip=False, shift=1),
        # 10 epochs of the 51,374 training images
        train=TrainConfig(
            steps=8_000,
            batch_size=64,
            lr=1e-3,
            muon_lr=3e-3,
            warmup=200,
            evaluate_every=1_000,
            preview_every=4_000,
            ema=0.999,
        ),
    ),
    "base": CLIPRun(
        preset="base",
        model=CLIPConfig(
            embed_dim=256,
            vision=VisionConfig(patch_size=4, width=256, layers=6, heads=8),
            text=TextConfig(width=256, layers=6, heads=8, context=64),
        ),
        augment=AugmentConfig(flip=True, shift=2),
        # 200 epochs of the 51,374 training images
        train=TrainConfig(
            steps=80_200,
            batch_size=128,
            lr=5e-4,
            warmup=2_000,
            evaluate_every=2_000,
            save_every=1_000,
            preview_every=4_000,
            ema=0.9999,
        ),
    ),
    # Ramesh et al. 2022, appendix C: ViT-H/16 on 256x256 images; the rest is Radford et al. 2021's. Theirs also
    # minimises sharpness (SAM), and crops at random
    "paper": CLIPRun(
        preset="paper",
        vocab_size=49_408,
        data=DataConfig(size=256),
        model=CLIPConfig(
            embed_dim=1024,
            vision=VisionConfig(image_size=256, channels=3, patch_size=16, width=1280, layers=32, heads=16),
            text=TextConfig(width=1024, layers=24, heads=16, context=77),
        ),
        augment=AugmentConfig(flip=False, shift=0),
        # 32 epochs of 650 million images
        train=TrainConfig(
            steps=635_000,
            batch_size=32_768,
            lr=3e-4,
            warmup=2_000,
            weight_decay=0.2,
            betas=(0.9, 0.98),
            ema=0.9999,
            evaluate_every=10_000,
            save_every=1_000,
            preview_every=10_000,
        ),
    ),
}
