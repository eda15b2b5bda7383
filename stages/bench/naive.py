"""Each stage as tutorials write it, with our weights: attention head by head, a caption encoded for every image and
padded to the context, CLIP and the prior inside the decoder's step, and one pass of the prior instead of a diffusion.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.bench import ours
from stages.bench.contender import Contender, sampling, training
from stages.bench.workload import Inputs
from unclip.clip import CLIP, Preprocess, TextFeatures
from unclip.clip.loss import contrastive_loss
from unclip.decoder import DecoderNetwork
from unclip.diffusion import GaussianDiffusion
from unclip.images import to_float
from unclip.layers import Attention, Block, causal_mask, timestep_embedding
from unclip.prior import PriorTransformer

STEPS, TIMED = 1000, 2
"""Steps of the sampling, and those of them that are timed."""
EMBEDDING_DIFFUSION = GaussianDiffusion(STEPS, "cosine", "x0")
PIXEL_DIFFUSION = GaussianDiffusion(STEPS, "cosine", "v")


class HeadByHead(nn.Module):
    """An `Attention` whose heads are modules, one after the other."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.out, self.heads = attention.out, nn.ModuleList()
        weights = attention.qkv.weight.detach().unflatten(0, (3, attention.heads, -1))
        biases = attention.qkv.bias.detach().unflatten(0, (3, attention.heads, -1))
        for head in range(attention.heads):
            self.heads.append(nn.ModuleList(linear(weights[i, head], biases[i, head]) for i in range(3)))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, W); mask (..., N, N) is True where a token may look."""
        return self.out(torch.cat([self.one(head, x, mask) for head in self.heads], dim=-1))

    def one(self, head: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (linear(x) for linear in head)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(dim=-1) @ v


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def plainly(model: nn.Module) -> nn.Module:
    """A copy with its transformers' attention head by head."""
    model = copy.deepcopy(model)
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        block.attention = HeadByHead(block.attention)
    return model


def through(blocks: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
    for block in blocks:
        x = x + block.attention(block.norm1(x), mask)
        x = x + block.mlp(block.norm2(x))
    return x


def encode_image(clip: CLIP, images: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) -> unit embeddings (B, D)."""
    tower = clip.vision
    x = tower.patch(images).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_token.expand(len(x), 1, -1), x], dim=1)
    x = through(tower.blocks, tower.norm_pre(x + tower.positions), None)
    return F.normalize(tower.projection(tower.norm_post(x)[:, 0]), dim=-1)


def encode_text(clip: CLIP, ids: Tensor) -> TextFeatures:
    """Token ids (B, L)."""
    tower = clip.text
    x = tower.tokens(ids) + tower.positions[: ids.shape[1]]
    x = tower.norm_final(through(tower.blocks, x, causal_mask(ids.shape[1])))
    text = tower.projection(x[torch.arange(len(x)), tower.end_of_text(ids)])
    return TextFeatures(F.normalize(text, dim=-1), x, tower.mask(ids), torch.zeros(len(ids), dtype=torch.bool))


def predict(prior: PriorTransformer, noised: Tensor, t: Tensor, captions: TextFeatures) -> Tensor:
    """Noised, scaled image embeddings (B, D) -> clean ones (B, D), of captions none of which is empty."""
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
    mask = F.pad(captions.mask, (0, 4), value=True)[:, None] & causal_mask(x.shape[1])
    return centre + prior.out(prior.norm_final(through(prior.blocks, x, mask))[:, -1])


def predict_pixels(decoder: DecoderNetwork, x: Tensor, t: Tensor, embeddings: Tensor, captions: TextFeatures) -> Tensor:
    """The decoder, its condition read anew."""
    image = decoder.image_condition(embeddings, torch.zeros(len(x), dtype=torch.bool))
    text = decoder.text_condition
    tokens = text.norm(through(text.blocks, text.project(captions.tokens), captions.mask[:, None]))
    time = decoder.time(timestep_embedding(t, decoder.config.unet.width))
    tokens, mask = torch.cat([image.tokens, tokens], dim=1), torch.cat([image.mask, captions.mask], dim=1)
    return decoder.unet(x, time + image.vector, tokens, mask)


def every_caption(inputs: Inputs, count: int) -> Tensor:
    """The caption of each of the first images, padded to the context: (count, context)."""
    ids = inputs.ids[inputs.caption[:count]]
    return F.pad(ids, (0, inputs.shapes.context - ids.shape[1]))


def train_clip(inputs: Inputs) -> Contender:
    model, count = plainly(ours.make_clip(inputs)), len(inputs.pixels)
    preprocess, ids = Preprocess(inputs.shapes.image_size, 1), every_caption(inputs, count)

    def loss() -> Tensor:
        image, text = encode_image(model, preprocess(inputs.pixels)), encode_text(model, ids).embedding
        return contrastive_loss(image, text, torch.arange(count), model.scale())

    return training("plain code", model, loss, count)


def train_prior(inputs: Inputs) -> Contender:
    clip, model = plainly(ours.make_clip(inputs)), plainly(ours.make_prior(inputs))
    preprocess, ids = Preprocess(inputs.shapes.image_size, 1), every_caption(inputs, len(inputs.t))

    def loss() -> Tensor:
        with torch.no_grad():
            captions, embeddings = encode_text(clip, ids), encode_image(clip, preprocess(inputs.pixels))
        noised, target = training_pair(EMBEDDING_DIFFUSION, model.scaler.scale(embeddings), inputs.noise, inputs.t)
        return F.mse_loss(predict(model.network, noised, inputs.t, captions), target)

    return training("plain code", model, loss, len(inputs.t))


def train_decoder(inputs: Inputs) -> Contender:
    clip, prior = plainly(ours.make_clip(inputs)), plainly(ours.make_prior(inputs))
    model, batch = plainly(ours.make_decoder(inputs)), ours.decoder_batch(inputs, inputs.shapes.context)
    steps = inputs.t[: len(batch)]
    ids = every_caption(inputs, len(batch))

    def loss() -> Tensor:
        with torch.no_grad():
            captions = encode_text(clip, ids)
            embeddings = prior.scaler.unscale(predict(prior.network, inputs.noise[: len(batch)], last(ids), captions))
        noised, target = training_pair(PIXEL_DIFFUSION, to_float(batch.pixels), batch.noise, steps)
        return F.mse_loss(predict_pixels(model.network, noised, steps, embeddings, captions), target)

    return training("plain code", model, loss, len(batch))


def training_pair(diffusion: GaussianDiffusion, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The network's input and target."""
    return diffusion.add_noise(x0, noise, t), diffusion.target(x0, noise, t)


def last(rows: Tensor) -> Tensor:
    """The last time, for each of the rows."""
    return torch.full((len(rows),), STEPS - 1)


def draw(inputs: Inputs) -> Contender:
    """1,000 steps of guided ancestral sampling, CLIP and the prior in each of them. Two are timed."""
    clip, prior = plainly(ours.make_clip(inputs)), plainly(ours.make_prior(inputs))
    decoder, count = plainly(ours.make_decoder(inputs)), inputs.shapes.samples
    ids = every_caption(inputs, count)

    def drawn() -> Tensor:
        x = inputs.pixel_noise[:count]
        for t in range(STEPS - 1, STEPS - 1 - TIMED, -1):
            captions = encode_text(clip, ids)
            embeddings = prior.scaler.unscale(predict(prior.network, inputs.noise[:count], last(ids), captions))
            times = torch.full((count,), t)
            conditional = predict_pixels(decoder.network, x, times, embeddings, captions)
            null = predict_pixels(decoder.network, x, times, torch.zeros_like(embeddings), captions)
            x0 = PIXEL_DIFFUSION.to_x0(torch.lerp(null, conditional, 2.5), x, t).clamp(-1, 1)
            mean, variance = PIXEL_DIFFUSION.posterior(x0, x, t)
            x = mean + variance.sqrt() * torch.randn_like(x)
        return x

    return sampling("plain code", [clip, prior, decoder], drawn, count, TIMED / STEPS)
