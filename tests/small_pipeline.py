"""An untrained pipeline of tiny models in a folder: all that reading and drawing need, in a moment."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from networks import randomise

from unclip.clip import CLIP, CLIPConfig, TextConfig, Tokenizer, VisionConfig
from unclip.decoder import DecoderConfig, DiffusionDecoder, DiffusionDecoderConfig, UNetConfig
from unclip.diffusion import ProcessConfig
from unclip.prior import DiffusionPrior, DiffusionPriorConfig, PriorConfig
from unclip.settings import DecoderSettings, PriorSettings, UpsamplerSettings
from unclip.store.checksums import sha256
from unclip.store.files import write_atomically
from unclip.store.index import write_index
from unclip.store.manifest import Manifest
from unclip.store.parts import save_part
from unclip.upsampler import DiffusionUpsampler, DiffusionUpsamplerConfig, UpsamplerConfig
from unclip.upsampler.model import LOCAL_UNET

CAPTIONS = ["a bag", "a dark coat", "a wide sneaker"]


def build(folder: Path, dim: int = 8, exportable: bool = False) -> Path:
    """Write the pipeline, with embeddings of `dim` numbers.

    An exportable one has an upsampler too, and random weights in place of the zeros that training starts from.
    """
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(CAPTIONS, 260)
    text = TextConfig(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.end_id, context=8, width=8, layers=1, heads=2)
    vision = VisionConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2)
    clip = CLIP(CLIPConfig(embed_dim=dim, vision=vision, text=text))
    process = ProcessConfig(timesteps=20)
    transformer = PriorConfig(embed_dim=dim, text_width=8, context=8, width=8, layers=1, heads=2)
    prior = DiffusionPrior(DiffusionPriorConfig(transformer, replace(process, prediction="x0")))
    unet = UNetConfig(width=8, multipliers=(1,), blocks=1, attention_levels=(0,), head_dim=8, condition_width=8)
    network = DecoderConfig(unet, embed_dim=dim, text_width=8, image_size=8)
    decoder = DiffusionDecoder(DiffusionDecoderConfig(network, replace(process, prediction="v")))
    parts = [("prior", prior, PriorSettings(steps=2, num_candidates=1)), ("decoder", decoder, DecoderSettings(steps=2))]
    if exportable:
        local = replace(LOCAL_UNET, width=8, multipliers=(1,))
        enlarging = UpsamplerConfig(local, factor=2, embedding=True, embed_dim=dim, channels=1, low_size=8)
        upsampler = DiffusionUpsampler(DiffusionUpsamplerConfig(enlarging, replace(process, prediction="v")))
        parts.append(("upsampler", upsampler, UpsamplerSettings(upscale_steps=2)))
        for model in (clip, *(model for _, model, _ in parts)):
            randomise(model)
    prior.scaler.fit_components(F.normalize(torch.randn(50, dim), dim=1), 0.5)
    write_atomically(folder / "tokenizer.json", tokenizer.to_json())
    manifest = Manifest("clip", parents={"tokenizer": sha256(tokenizer.to_json().encode())}, complete=True)
    parents = {"clip": save_part(folder / "clip", clip, manifest)}
    for part, model, settings in parts:
        manifest = Manifest(part, parents=parents, sampling=asdict(settings), complete=True)
        save_part(folder / part, model, manifest)
    write_index(folder)
    return folder
