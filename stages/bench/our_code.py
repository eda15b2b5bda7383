"""Our contenders: the objectives that the trainers use, and the code that `sample.py` samples with."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stages.bench.contender import Contender, sampling_contender, training_contender
from stages.bench.workload import Inputs
from stages.clip import CLIPBatch, CLIPObjective
from stages.decoder import DecoderBatch, DecoderObjective
from stages.prior import PriorBatch, PriorObjective
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, VisionConfig
from unclip.decoder import DecoderConfig, DiffusionDecoder, DiffusionDecoderConfig, UNetConfig
from unclip.decoder.consistency_decoder import ConsistencyDecoder
from unclip.diffusion import VariancePreserving
from unclip.diffusion.process import NoiseLevels
from unclip.prior import DiffusionPrior, DiffusionPriorConfig, PriorConfig
from unclip.settings import DecoderSettings, FastDecoderSettings, PriorSettings


def make_clip(inputs: Inputs) -> CLIP:
    shapes = inputs.shapes
    transformer = {"width": shapes.width, "layers": shapes.layers, "heads": shapes.heads}
    vision = VisionConfig(shapes.image_size, patch_size=shapes.patch_size, **transformer)
    text = TextConfig(shapes.vocab_size, inputs.end_id, context=shapes.context, **transformer)
    return CLIP(CLIPConfig(shapes.width, vision, text))


def make_prior(inputs: Inputs) -> DiffusionPrior:
    shapes = inputs.shapes
    network = PriorConfig(
        embed_dim=shapes.width,
        text_width=shapes.width,
        context=shapes.context,
        width=shapes.width,
        layers=shapes.layers,
        heads=shapes.heads,
    )
    return DiffusionPrior(DiffusionPriorConfig(network))


def make_decoder(inputs: Inputs) -> DiffusionDecoder:
    shapes = inputs.shapes
    unet = UNetConfig(
        space_to_depth=1,
        width=shapes.channels,
        multipliers=shapes.multipliers,
        blocks=shapes.blocks,
        attention_levels=tuple(range(len(shapes.multipliers)))[-2:],
        condition_width=shapes.width,
    )
    network = DecoderConfig(unet, embed_dim=shapes.width, text_width=shapes.width, image_size=shapes.image_size)
    return DiffusionDecoder(DiffusionDecoderConfig(network)).to(memory_format=torch.channels_last)


def noise_levels(steps: Tensor) -> NoiseLevels:
    """Return the noise levels of integer steps (B,) of 1,000."""
    alpha, sigma = VariancePreserving().alpha_sigma((steps + 1) / 1000)
    return NoiseLevels(steps.float(), alpha.float(), sigma.float())


def clip_batch(inputs: Inputs, distinct: bool) -> CLIPBatch:
    """Return a batch whose captions are all different and of full length, or as Fashion-MNIST has them."""
    if distinct:
        return CLIPBatch(inputs.pixels, torch.arange(len(inputs.pixels)), inputs.full_token_ids)
    return CLIPBatch(inputs.pixels, inputs.caption_rows, inputs.token_ids)


def prior_batch(inputs: Inputs, tokens: int) -> PriorBatch:
    captions = inputs.text_features(len(inputs.embeddings), tokens)
    weights = torch.ones(len(inputs.embeddings))
    return PriorBatch(inputs.embeddings, captions, noise_levels(inputs.t), inputs.noise, weights)


def decoder_batch(inputs: Inputs, tokens: int) -> DecoderBatch:
    rows = slice(inputs.shapes.decoder_batch)
    captions = inputs.text_features(inputs.shapes.decoder_batch, tokens)
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
    model = make_clip(inputs)
    batch = clip_batch(inputs, distinct)
    objective = CLIPObjective(model, Preprocess(inputs.shapes.image_size, 1))
    return training_contender("ours", model, lambda: objective(batch), len(batch))


def train_prior(inputs: Inputs, tokens: int) -> Contender:
    model = make_prior(inputs)
    batch = prior_batch(inputs, tokens)
    objective = PriorObjective(model)
    return training_contender("ours", model, lambda: objective(batch), len(batch))


def train_decoder(inputs: Inputs, tokens: int) -> Contender:
    model = make_decoder(inputs)
    batch = decoder_batch(inputs, tokens)
    objective = DecoderObjective(model)
    return training_contender("ours", model, lambda: objective(batch), len(batch))


def guided_step(inputs: Inputs) -> Contender:
    """One step of the decoder with guidance. Its condition is computed before, once for all steps."""
    model = make_decoder(inputs).eval()
    batch = decoder_batch(inputs, inputs.shapes.context)
    settings = replace(DecoderSettings(), guidance_interval=(0.0, 1.0))
    with torch.inference_mode():
        denoise = model.denoiser(batch.embeddings, batch.text, settings)
    level = model.process.level(0.5)
    return sampling_contender("ours", [model], lambda: denoise(batch.noise, level).x0, len(batch))


def sample(inputs: Inputs) -> Contender:
    """From encoded captions to pixels, by the decoder, with the library's settings."""
    return sampled(inputs, make_decoder(inputs), PriorSettings(), DecoderSettings())


def sample_fast(inputs: Inputs) -> Contender:
    """From encoded captions to pixels, by a fast decoder in two calls and the prior in eight steps."""
    fast = ConsistencyDecoder(make_decoder(inputs).config).to(memory_format=torch.channels_last)
    return sampled(inputs, fast, PriorSettings(steps=8, spacing="karras"), FastDecoderSettings())


def sampled(inputs: Inputs, decoder: Any, prior_settings: PriorSettings, settings: Any) -> Contender:
    prior = make_prior(inputs).eval()
    decoder = decoder.eval()
    count = inputs.shapes.samples
    captions = inputs.text_features(count, inputs.shapes.tokens)
    seeds = list(range(count))

    def draw_images() -> Tensor:
        embeddings = prior.draw_embeddings(captions, seeds, prior_settings)
        return decoder.draw_images(embeddings, captions, seeds, settings)

    return sampling_contender("ours", [prior, decoder], draw_images, count)
