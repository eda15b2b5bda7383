"""Our own code: the objectives that the trainers take, and what `sample.py` draws with."""

from dataclasses import replace

import torch
from torch import Tensor

from stages.bench.contender import Contender, sampling, training
from stages.bench.workload import Inputs
from stages.clip import CLIPBatch, CLIPObjective
from stages.decoder import DecoderBatch, DecoderObjective
from stages.prior import PriorBatch, PriorObjective
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, VisionConfig
from unclip.decoder import DecoderConfig, DiffusionDecoder, DiffusionDecoderConfig, UNetConfig
from unclip.diffusion import VariancePreserving
from unclip.diffusion.process import NoiseLevels
from unclip.prior import DiffusionPrior, DiffusionPriorConfig, PriorConfig
from unclip.settings import DecoderSettings, PriorSettings


def make_clip(inputs: Inputs) -> CLIP:
    s = inputs.shapes
    vision = VisionConfig(s.image_size, patch_size=s.patch_size, width=s.width, layers=s.layers, heads=s.heads)
    text = TextConfig(s.vocab_size, inputs.end_id, context=s.context, width=s.width, layers=s.layers, heads=s.heads)
    return CLIP(CLIPConfig(s.width, vision, text))


def make_prior(inputs: Inputs) -> DiffusionPrior:
    s = inputs.shapes
    network = PriorConfig(s.width, s.width, s.context, s.width, s.layers, s.heads)
    return DiffusionPrior(DiffusionPriorConfig(network))


def make_decoder(inputs: Inputs) -> DiffusionDecoder:
    s = inputs.shapes
    inner = tuple(range(len(s.multipliers)))[-2:]
    unet = UNetConfig(
        space_to_depth=1,
        width=s.channels,
        multipliers=s.multipliers,
        blocks=s.blocks,
        attention_levels=inner,
        condition_width=s.width,
    )
    network = DecoderConfig(unet, embed_dim=s.width, text_width=s.width, image_size=s.image_size)
    return DiffusionDecoder(DiffusionDecoderConfig(network)).to(memory_format=torch.channels_last)


def noise_levels(steps: Tensor) -> NoiseLevels:
    """The noise levels of integer steps (B,) of 1,000."""
    alpha, sigma = VariancePreserving().alpha_sigma((steps + 1) / 1000)
    return NoiseLevels(steps.float(), alpha.float(), sigma.float())


def clip_batch(inputs: Inputs, distinct: bool) -> CLIPBatch:
    """Every caption another and of full length, or as Fashion-MNIST has them."""
    if distinct:
        return CLIPBatch(inputs.pixels, torch.arange(len(inputs.pixels)), inputs.distinct)
    return CLIPBatch(inputs.pixels, inputs.caption, inputs.ids)


def prior_batch(inputs: Inputs, tokens: int) -> PriorBatch:
    captions = inputs.captions(len(inputs.embeddings), tokens)
    return PriorBatch(inputs.embeddings, captions, noise_levels(inputs.t), inputs.noise)


def decoder_batch(inputs: Inputs, tokens: int) -> DecoderBatch:
    rows = slice(inputs.shapes.decoder_batch)
    captions = inputs.captions(inputs.shapes.decoder_batch, tokens)
    drop = torch.zeros(len(captions), dtype=torch.bool)
    return DecoderBatch(
        pixels=inputs.pixels[rows],
        embeddings=inputs.embeddings[rows],
        drop=drop,
        text=captions,
        levels=noise_levels(inputs.t[rows]),
        noise=inputs.pixel_noise[rows],
    )


def train_clip(inputs: Inputs, distinct: bool) -> Contender:
    model, batch = make_clip(inputs), clip_batch(inputs, distinct)
    objective = CLIPObjective(model, Preprocess(inputs.shapes.image_size, 1))
    return training("ours", model, lambda: objective(batch), len(batch))


def train_prior(inputs: Inputs, tokens: int) -> Contender:
    model, batch = make_prior(inputs), prior_batch(inputs, tokens)
    objective = PriorObjective(model)
    return training("ours", model, lambda: objective(batch), len(batch))


def train_decoder(inputs: Inputs, tokens: int) -> Contender:
    model, batch = make_decoder(inputs), decoder_batch(inputs, tokens)
    objective = DecoderObjective(model)
    return training("ours", model, lambda: objective(batch), len(batch))


def guided_step(inputs: Inputs) -> Contender:
    """One step of the decoder with guidance, its condition read before."""
    model, batch = make_decoder(inputs).eval(), decoder_batch(inputs, inputs.shapes.context)
    settings = replace(DecoderSettings(), guidance_interval=(0.0, 1.0))
    with torch.inference_mode():
        denoise = model.denoiser(batch.embeddings, batch.text, settings)
    level = model.process.level(0.5)
    return sampling("ours", [model], lambda: denoise(batch.noise, level).x0, len(batch))


def draw(inputs: Inputs) -> Contender:
    """From encoded captions to pixels, with the settings that are shipped."""
    prior, decoder = make_prior(inputs).eval(), make_decoder(inputs).eval()
    count = inputs.shapes.samples
    captions, seeds = inputs.captions(count, inputs.shapes.tokens), list(range(count))

    def drawn() -> Tensor:
        embeddings = prior.draw_embeddings(captions, seeds, PriorSettings())
        return decoder.draw_images(embeddings, captions, seeds, DecoderSettings())

    return sampling("ours", [prior, decoder], drawn, count)
