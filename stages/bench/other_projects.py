"""Other projects' contenders, each called as its authors' own trainers and pipelines call it.

Widths and layers are ours, so that the numbers of parameters are equal within 5%. None of the projects is a dependency:
the table names those that are not installed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.bench.contender import Contender, sampling_contender, training_contender
from stages.bench.workload import Inputs
from unclip.images import to_float

GUIDED_STEPS = 50
PRIOR_STEPS = 25
"""The defaults of diffusers' Stable Diffusion and unCLIP pipelines."""


def open_clip_train(inputs: Inputs) -> Contender:
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    s = inputs.shapes
    vision = CLIPVisionCfg(s.layers, s.width, s.width // s.heads, patch_size=s.patch_size, image_size=s.image_size)
    text = CLIPTextCfg(s.context, s.vocab_size, width=s.width, heads=s.heads, layers=s.layers)
    model = CLIP(s.width, vision, text)
    contrastive_loss = open_clip.ClipLoss()
    model.visual.conv1 = nn.Conv2d(1, s.width, s.patch_size, s.patch_size, bias=False)  # grey, as ours
    images = to_float(inputs.pixels)
    return training_contender(
        "open_clip", model, lambda: contrastive_loss(*model(images, inputs.full_token_ids)), len(images)
    )


def diffusers_prior(inputs: Inputs) -> nn.Module:
    from diffusers import PriorTransformer

    s = inputs.shapes
    return PriorTransformer(s.heads, s.width // s.heads, s.layers, s.width, s.context, additional_embeddings=4)


def diffusers_train_prior(inputs: Inputs) -> Contender:
    """Captions are padded to the context, as diffusers' pipelines pad them."""
    from diffusers import DDPMScheduler

    model = diffusers_prior(inputs)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    clean = inputs.embeddings * inputs.shapes.width**0.5
    mask = torch.ones(inputs.tokens.shape[:2], dtype=torch.bool)

    def loss() -> Tensor:
        noised = scheduler.add_noise(clean, inputs.noise, inputs.t)
        output = model(noised, inputs.t, inputs.text_embeddings, inputs.tokens, mask)
        return F.mse_loss(output.predicted_image_embedding, clean)

    return training_contender("diffusers", model, loss, len(clean))


def dalle2_prior(inputs: Inputs) -> nn.Module:
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork

    s = inputs.shapes
    network = DiffusionPriorNetwork(  # its MLPs are gated: at about 3/4 of the width they have as many parameters
        s.width, max_text_len=s.context, depth=s.layers, dim_head=s.width // s.heads, heads=s.heads, ff_mult=3.25
    )
    return DiffusionPrior(network, image_embed_dim=s.width, cond_drop_prob=0.1)


def dalle2_train_prior(inputs: Inputs) -> Contender:
    model = dalle2_prior(inputs)
    arguments = {"text_embed": inputs.text_embeddings, "text_encodings": inputs.tokens}

    def loss() -> Tensor:
        return model(image_embed=inputs.embeddings.clone(), **arguments)  # the model scales it in place

    return training_contender("dalle2-pytorch", model, loss, len(inputs.embeddings))


def diffusers_unet(inputs: Inputs) -> nn.Module:
    """The UNet of diffusers' unCLIP pipelines. It concatenates the condition's keys and values to the image's own."""
    from diffusers import UNet2DConditionModel

    s = inputs.shapes
    levels = len(s.multipliers) - 2
    return UNet2DConditionModel(
        sample_size=s.image_size,
        in_channels=1,
        out_channels=1,
        layers_per_block=s.blocks,
        block_out_channels=tuple(s.channels * m for m in s.multipliers),
        down_block_types=("DownBlock2D",) * levels + ("SimpleCrossAttnDownBlock2D",) * 2,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * levels,
        norm_num_groups=8,
        cross_attention_dim=s.width,
        attention_head_dim=32,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=s.width,
        resnet_time_scale_shift="scale_shift",
    ).to(memory_format=torch.channels_last)


def diffusers_train_decoder(inputs: Inputs) -> Contender:
    from diffusers import DDPMScheduler

    model = diffusers_unet(inputs)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    rows = slice(inputs.shapes.decoder_batch)
    images = to_float(inputs.pixels[rows])
    noise = inputs.pixel_noise[rows]
    t = inputs.t[rows]
    encodings = inputs.tokens[rows]
    embeddings = inputs.embeddings[rows]

    def loss() -> Tensor:
        noised = scheduler.add_noise(images, noise, t)
        return F.mse_loss(model(noised, t, encodings, class_labels=embeddings).sample, noise)

    return training_contender("diffusers", model, loss, len(images))


def dalle2_decoder(inputs: Inputs) -> nn.Module:
    from dalle2_pytorch import Decoder, Unet

    s = inputs.shapes
    inner = tuple(level >= len(s.multipliers) - 2 for level in range(len(s.multipliers)))
    unet = Unet(
        s.channels,
        image_embed_dim=s.width,
        text_embed_dim=s.width,
        cond_dim=s.width - 8,  # if it equals the embedding's, the image embedding becomes no tokens
        channels=1,
        dim_mults=s.multipliers,
        num_resnet_blocks=s.blocks,
        self_attn=inner,
        attn_heads=s.heads,
        max_text_len=s.context,
        cond_on_text_encodings=True,
        cond_on_image_embeds=True,
    )
    return Decoder(unet, image_size=s.image_size, channels=1, timesteps=1000, learned_variance=False)


def dalle2_train_decoder(inputs: Inputs) -> Contender:
    model = dalle2_decoder(inputs)
    rows = slice(inputs.shapes.decoder_batch)
    images = inputs.pixels[rows] / 255
    condition = {"image_embed": inputs.embeddings[rows], "text_encodings": inputs.tokens[rows]}
    return training_contender("dalle2-pytorch", model, lambda: model(images, unet_number=1, **condition), len(images))


def diffusers_guided_step(inputs: Inputs) -> Contender:
    from diffusers import DDIMScheduler

    model = diffusers_unet(inputs).eval()
    rows = slice(inputs.shapes.decoder_batch)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    x = inputs.pixel_noise[rows]
    scheduler.set_timesteps(GUIDED_STEPS)
    condition = (inputs.tokens[rows].repeat(2, 1, 1), inputs.embeddings[rows].repeat(2, 1))
    t = scheduler.timesteps[GUIDED_STEPS // 2]
    return sampling_contender(
        "diffusers", [model], lambda: take_guided_step(model, scheduler, x, t, *condition), len(x)
    )


def take_guided_step(
    model: nn.Module, scheduler, x: Tensor, t: Tensor, encodings: Tensor, embeddings: Tensor
) -> Tensor:
    """Take a step of a diffusers scheduler, with both halves of guidance in one batch as in its pipelines."""
    null, conditional = model(torch.cat([x, x]), t, encodings, class_labels=embeddings).sample.chunk(2)
    return scheduler.step(null + 2.5 * (conditional - null), t, x).prev_sample


def dalle2_guided_step(inputs: Inputs) -> Contender:
    model = dalle2_decoder(inputs).eval()
    rows = slice(inputs.shapes.decoder_batch)
    x = inputs.pixel_noise[rows]
    t = torch.full((inputs.shapes.decoder_batch,), 500)
    condition = {"image_embed": inputs.embeddings[rows], "text_encodings": inputs.tokens[rows]}

    def step() -> Tensor:
        scheduler = model.noise_schedulers[0]
        return model.p_sample(model.unets[0], x, t, noise_scheduler=scheduler, cond_scale=2.5, **condition)[0]

    return sampling_contender("dalle2-pytorch", [model.unets[0]], step, len(x))


def diffusers_sample(inputs: Inputs) -> Contender:
    """25 guided steps of the prior, as in diffusers' unCLIP pipeline, then 50 guided steps of DDIM."""
    from diffusers import DDIMScheduler, UnCLIPScheduler

    s = inputs.shapes
    count = s.samples
    prior = diffusers_prior(inputs).eval()
    unet = diffusers_unet(inputs).eval()
    encodings = inputs.tokens[:count].repeat(2, 1, 1)
    text = inputs.text_embeddings[:count].repeat(2, 1)
    mask = torch.ones(2 * count, s.context, dtype=torch.bool)

    def draw_images() -> Tensor:
        scheduler = UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)
        scheduler.set_timesteps(PRIOR_STEPS)
        z = inputs.noise[:count]
        next_timesteps = [*scheduler.timesteps[1:], None]
        for t, t_next in zip(scheduler.timesteps, next_timesteps, strict=True):
            predicted = prior(torch.cat([z, z]), t, text, encodings, mask).predicted_image_embedding
            null, conditional = predicted.chunk(2)
            z = scheduler.step(null + 4 * (conditional - null), t, z, prev_timestep=t_next).prev_sample
        scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
        scheduler.set_timesteps(GUIDED_STEPS)
        x = inputs.pixel_noise[:count]
        for t in scheduler.timesteps:
            x = take_guided_step(unet, scheduler, x, t, encodings, z.repeat(2, 1))
        return x

    return sampling_contender("diffusers", [prior, unet], draw_images, count)
