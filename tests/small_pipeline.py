"""An untrained pipeline of tiny models in a folder: all that reading and drawing need, in a moment."""

from dataclasses import asdict
from pathlib import Path

import torch

from unclip.clip import CLIP, CLIPConfig, TextConfig, Tokenizer, VisionConfig
from unclip.decoder import Decoder, DecoderConfig
from unclip.prior import Prior, PriorConfig
from unclip.settings import DecoderSettings, PriorSettings
from unclip.store.checksums import sha256
from unclip.store.files import write_atomically
from unclip.store.index import write_index
from unclip.store.manifest import Manifest
from unclip.store.parts import save_part

CAPTIONS = ["a bag", "a dark coat", "a wide sneaker"]


def build(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(CAPTIONS, 260)
    text = TextConfig(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.end_id, context=8, width=8, layers=1, heads=2)
    vision = VisionConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2)
    clip = CLIP(CLIPConfig(embed_dim=8, vision=vision, text=text))
    prior = Prior(PriorConfig(embed_dim=8, text_width=8, context=8, width=8, layers=1, heads=2, timesteps=20))
    prior.scaler.mean.normal_()
    decoder = Decoder(
        DecoderConfig(
            embed_dim=8, text_width=8, image_size=8, width=8, multipliers=(1,), blocks=1, attention_levels=(0,),
            head_dim=8, condition_width=8, timesteps=20,
        )
    )  # fmt: skip
    write_atomically(folder / "tokenizer.json", tokenizer.to_json())
    manifest = Manifest("clip", parents={"tokenizer": sha256(tokenizer.to_json().encode())}, complete=True)
    parents = {"clip": save_part(folder / "clip", clip, manifest)}
    for stage, model, settings in (
        ("prior", prior, PriorSettings(steps=2, num_candidates=1)), ("decoder", decoder, DecoderSettings(steps=2)),
    ):  # fmt: skip
        manifest = Manifest(stage, parents=parents, sampling=asdict(settings), complete=True)
        save_part(folder / stage, model, manifest)
    write_index(folder)
    return folder
