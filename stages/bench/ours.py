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
from unclip.decoder import Decoder, DecoderConfig
from unclip.prior import Prior, PriorConfig
from unclip.settings import DecoderSettings, PriorSettings


def make_clip(inputs: Inputs) -> CLIP:
    s = inputs.shapes
    vision = VisionConfig(s.image_size, patch_size=s.patch_size, width=s.width, layers=s.layers, heads=s.heads)
    text = TextConfig(s.vocab_size, inputs.end_id, context=s.context, width=s.width, layers=s.layers, heads=s.heads)
    return CLIP(CLIPConfig(s.width, vision, text))


def make_prior(inputs: Inputs) -> Prior:
    s = inputs.shapes
    return Prior(PriorConfig(s.width, s.width, s.context, s.width, s.layers, s.heads))


def make_decoder(inputs: Inputs) -> Decoder:
    s = inputs.shapes
    inner = tuple(range(len(s.multipliers)))[-2:]
    return Decoder(
        DecoderConfig(
            embed_dim=s.width, text_width=s.width, image_size=s.image_size, space_to_depth=1, width=s.channels,
            multipliers=s.multipliers, blocks=s.blocks, attention_levels=inner, condition_width=s.width,
        )
    ).to(memory_format=torch.channels_last)  # fmt: skip


def clip_batch(inputs: Inputs, distinct: bool) -> CLIPBatch:
    """Every caption another and of full length, or as Fashion-MNIST has them."""
    if distinct:
        return CLIPBatch(inputs.pixels, torch.arange(len(inputs.pixels)), inputs.distinct)
    return CLIPBatch(inputs.pixels, inputs.caption, inputs.ids)


def prior_batch(inputs: Inputs, tokens: int) -> PriorBatch:
    captions = inputs.captions(len(inputs.embeddings), tokens)
    return PriorBatch(inputs.embeddings, captions, inputs.t, inputs.noise)


def decoder_batch(inputs: Inputs, tokens: int) -> DecoderBatch:
    rows = slice(inputs.shapes.decoder_batch)
    captions = inputs.captions(inputs.shapes.decoder_batch, tokens)
    drop = torch.zeros(len(captions), dtype=torch.bool)
    return DecoderBatch(
        inputs.pixels[rows], inputs.embeddings[rows], drop, captions, inputs.t[rows], inputs.pixel_noise[rows]
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
        denoise = model.denoiser(batch.embeddings, batch.captions, settings)
    return sampling("ours", [model], lambda: denoise(batch.noise, 500), len(batch))


def draw(inputs: Inputs) -> Contender:
    """From encoded captions to pixels, with the settings that are shipped."""
    prior, decoder = make_prior(inputs).eval(), make_decoder(inputs).eval()
    count = inputs.shapes.samples
    captions, seeds = inputs.captions(count, inputs.shapes.tokens), list(range(count))

    def drawn() -> Tensor:
        embeddings = prior.draw(captions, seeds, PriorSettings())
        return decoder.draw(embeddings, captions, seeds, DecoderSettings())

    return sampling("ours", [prior, decoder], drawn, count)
