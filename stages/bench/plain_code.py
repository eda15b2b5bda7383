"""Contenders as tutorials write them, with our weights.

Attention is computed head by head; a caption is encoded for every image, padded to the context; CLIP and the prior run
inside every step of the decoder; and the prior is called once, instead of being sampled.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.bench import our_code
from stages.bench.contender import Contender, sampling_contender, training_contender
from stages.bench.workload import Inputs
from unclip.clip import CLIP, Preprocess, TextFeatures
from unclip.clip.loss import contrastive_loss
from unclip.decoder import DecoderNetwork
from unclip.diffusion import GaussianDiffusion
from unclip.images import to_float
from unclip.layers import Attention, Block, causal_mask, timestep_embedding
from unclip.prior import PriorTransformer

STEPS = 1000
"""Steps of the sampling."""
TIMED_STEPS = 2
"""The steps that are timed; the rest is extrapolated."""
EMBEDDING_DIFFUSION = GaussianDiffusion(STEPS, "cosine", "x0")
PIXEL_DIFFUSION = GaussianDiffusion(STEPS, "cosine", "v")


class HeadByHead(nn.Module):
    """An `Attention` whose heads are modules, called one after the other."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.out = attention.out
        self.heads = nn.ModuleList()
        weights = attention.qkv.weight.detach().unflatten(0, (3, attention.heads, -1))
        biases = attention.qkv.bias.detach().unflatten(0, (3, attention.heads, -1))
        for head in range(attention.heads):
            self.heads.append(nn.ModuleList(make_linear(weights[i, head], biases[i, head]) for i in range(3)))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x is (B, N, W); mask (..., N, N) is True where a token may attend to another."""
        return self.out(torch.cat([self.attend(head, x, mask) for head in self.heads], dim=-1))

    def attend(self, head: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (linear(x) for linear in head)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(dim=-1) @ v


def make_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear


def with_plain_attention(model: nn.Module) -> nn.Module:
    """Return a copy whose transformers compute attention head by head."""
    model = copy.deepcopy(model)
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        block.attention = HeadByHead(block.attention)
    return model


def run_blocks(blocks: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
    for block in blocks:
        x = x + block.attention(block.norm1(x), mask)
        x = x + block.mlp(block.norm2(x))
    return x


def encode_image(clip: CLIP, images: Tensor) -> Tensor:
    """Encode normalised images (B, C, H, W) to unit embeddings (B, D)."""
    tower = clip.vision
    x = tower.patch(images).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_token.expand(len(x), 1, -1), x], dim=1)
    x = run_blocks(tower.blocks, tower.norm_pre(x + tower.positions), None)
    return F.normalize(tower.projection(tower.norm_post(x)[:, 0]), dim=-1)


def encode_text(clip: CLIP, token_ids: Tensor) -> TextFeatures:
    """Encode token ids (B, L)."""
    tower = clip.text
    x = tower.tokens(token_ids) + tower.positions[: token_ids.shape[1]]
    x = tower.norm_final(run_blocks(tower.blocks, x, causal_mask(token_ids.shape[1], x.device)))
    text = tower.projection(x[torch.arange(len(x), device=x.device), tower.end_of_text(token_ids)])
    empty = torch.zeros(len(token_ids), dtype=torch.bool, device=x.device)
    return TextFeatures(F.normalize(text, dim=-1), x, tower.mask(token_ids), empty)


def predict_embeddings(prior: PriorTransformer, noised: Tensor, t: Tensor, captions: TextFeatures) -> Tensor:
    """Predict clean image embeddings (B, D) from noised ones, all scaled. No caption may be empty."""
    centre = prior.regression(captions.embedding)
    x = torch.cat(
        [
            prior.encoding_in(captions.tokens) + prior.positions[: captions.tokens.shape[1]],
            prior.text_in(captions.embedding * prior.config.embed_dim**0.5)[:, None],
            prior.time_in(timestep_embedding(t, prior.config.width))[:, None],
            prior.image_in(noised - EMBEDDING_DIFFUSION.signal_and_noise(t, noised)[0] * centre)[:, None],
            prior.query.expand(len(t), 1, -1),
        ],
        dim=1,
    )
    mask = F.pad(captions.mask, (0, 4), value=True)[:, None] & causal_mask(x.shape[1], x.device)
    return centre + prior.out(prior.norm_final(run_blocks(prior.blocks, x, mask))[:, -1])


def predict_pixels(decoder: DecoderNetwork, x: Tensor, t: Tensor, embeddings: Tensor, captions: TextFeatures) -> Tensor:
    """Predict the decoder's output (B, C, H, W) for noised images x. The condition is computed anew in every call."""
    image = decoder.image_condition(embeddings, torch.zeros(len(x), dtype=torch.bool, device=x.device))
    text = decoder.text_condition
    tokens = text.norm(run_blocks(text.blocks, text.project(captions.tokens), captions.mask[:, None]))
    time = decoder.time(timestep_embedding(t, decoder.config.unet.width))
    tokens = torch.cat([image.tokens, tokens], dim=1)
    mask = torch.cat([image.mask, captions.mask], dim=1)
    return decoder.unet(x, time + image.vector, tokens, mask)


def padded_captions(inputs: Inputs, count: int) -> Tensor:
    """Return the token ids of the first images' captions, padded to the context: (count, context)."""
    token_ids = inputs.token_ids[inputs.caption_rows[:count]]
    return F.pad(token_ids, (0, inputs.shapes.context - token_ids.shape[1]))


def train_clip(inputs: Inputs) -> Contender:
    model = with_plain_attention(our_code.make_clip(inputs))
    preprocess = Preprocess(inputs.shapes.image_size, 1)
    count = len(inputs.pixels)
    token_ids = padded_captions(inputs, count)

    def loss() -> Tensor:
        image = encode_image(model, preprocess(inputs.pixels))
        text = encode_text(model, token_ids).embedding
        return contrastive_loss(image, text, torch.arange(count, device=text.device), model.scale())

    return training_contender("plain code", model, loss, count)


def train_prior(inputs: Inputs) -> Contender:
    clip = with_plain_attention(our_code.make_clip(inputs))
    model = with_plain_attention(our_code.make_prior(inputs))
    preprocess = Preprocess(inputs.shapes.image_size, 1)
    token_ids = padded_captions(inputs, len(inputs.t))

    def loss() -> Tensor:
        with torch.no_grad():
            captions = encode_text(clip, token_ids)
            embeddings = encode_image(clip, preprocess(inputs.pixels))
        noised, target = training_pair(EMBEDDING_DIFFUSION, model.scaler.scale(embeddings), inputs.noise, inputs.t)
        return F.mse_loss(predict_embeddings(model.network, noised, inputs.t, captions), target)

    return training_contender("plain code", model, loss, len(inputs.t))


def train_decoder(inputs: Inputs) -> Contender:
    clip = with_plain_attention(our_code.make_clip(inputs))
    prior = with_plain_attention(our_code.make_prior(inputs))
    model = with_plain_attention(our_code.make_decoder(inputs))
    batch = our_code.decoder_batch(inputs, inputs.shapes.context)
    count = len(batch)
    steps = inputs.t[:count]
    token_ids = padded_captions(inputs, count)

    def loss() -> Tensor:
        with torch.no_grad():
            captions = encode_text(clip, token_ids)
            predicted = predict_embeddings(
                prior.network, inputs.noise[:count], last_times(inputs.noise[:count]), captions
            )
            embeddings = prior.scaler.unscale(predicted)
        noised, target = training_pair(PIXEL_DIFFUSION, to_float(batch.pixels), batch.noise, steps)
        return F.mse_loss(predict_pixels(model.network, noised, steps, embeddings, captions), target)

    return training_contender("plain code", model, loss, count)


def sample(inputs: Inputs) -> Contender:
    """1,000 steps of guided ancestral sampling, with CLIP and the prior in each of them. Two are timed."""
    clip = with_plain_attention(our_code.make_clip(inputs))
    prior = with_plain_attention(our_code.make_prior(inputs))
    decoder = with_plain_attention(our_code.make_decoder(inputs))
    count = inputs.shapes.samples
    token_ids = padded_captions(inputs, count)

    def draw_images() -> Tensor:
        x = inputs.pixel_noise[:count]
        for t in range(STEPS - 1, STEPS - 1 - TIMED_STEPS, -1):
            captions = encode_text(clip, token_ids)
            predicted = predict_embeddings(
                prior.network, inputs.noise[:count], last_times(inputs.noise[:count]), captions
            )
            embeddings = prior.scaler.unscale(predicted)
            times = torch.full((count,), t, device=x.device)
            conditional = predict_pixels(decoder.network, x, times, embeddings, captions)
            null = predict_pixels(decoder.network, x, times, torch.zeros_like(embeddings), captions)
            x0 = PIXEL_DIFFUSION.to_x0(torch.lerp(null, conditional, 2.5), x, t).clamp(-1, 1)
            mean, variance = PIXEL_DIFFUSION.posterior(x0, x, t)
            x = mean + variance.sqrt() * torch.randn_like(x)
        return x

    return sampling_contender("plain code", [clip, prior, decoder], draw_images, count, TIMED_STEPS / STEPS)


def training_pair(diffusion: GaussianDiffusion, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return a network's input and its target."""
    return diffusion.add_noise(x0, noise, t), diffusion.target(x0, noise, t)


def last_times(noise: Tensor) -> Tensor:
    """Return the last time of the diffusion for each row of noise (B, ...)."""
    return torch.full((len(noise),), STEPS - 1, device=noise.device)
