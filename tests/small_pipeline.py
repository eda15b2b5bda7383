"""An untrained pipeline of tiny models in a folder: all that reading and drawing need, in a moment."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from unclip.clip import CLIP, CLIPConfig, TextConfig, Tokenizer, VisionConfig
from unclip.decoder import DecoderConfig, DiffusionDecoder, DiffusionDecoderConfig, UNetConfig
from unclip.diffusion import ProcessConfig
from unclip.prior import DiffusionPrior, DiffusionPriorConfig, PriorConfig
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
    process = ProcessConfig(timesteps=20)
    transformer = PriorConfig(embed_dim=8, text_width=8, context=8, width=8, layers=1, heads=2)
    prior = DiffusionPrior(DiffusionPriorConfig(transformer, replace(process, prediction="x0")))
    prior.scaler.mean.normal_()
    unet = UNetConfig(width=8, multipliers=(1,), blocks=1, attention_levels=(0,), head_dim=8, condition_width=8)
    network = DecoderConfig(unet, embed_dim=8, text_width=8, image_size=8)
    decoder = DiffusionDecoder(DiffusionDecoderConfig(network, replace(process, prediction="v")))
    write_atomically(folder / "tokenizer.json", tokenizer.to_json())
    manifest = Manifest("clip", parents={"tokenizer": sha256(tokenizer.to_json().encode())}, complete=True)
    parents = {"clip": save_part(folder / "clip", clip, manifest)}
    for part, model, settings in (
        ("prior", prior, PriorSettings(steps=2, num_candidates=1)), ("decoder", decoder, DecoderSettings(steps=2)),
    ):  # fmt: skip
        manifest = Manifest(part, parents=parents, sampling=asdict(settings), complete=True)
        save_part(folder / part, model, manifest)
    write_index(folder)
    return folder
