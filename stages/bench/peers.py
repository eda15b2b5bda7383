"""Other projects' code for the same work, each as its authors' own trainers and pipelines call it.

Their widths and layers are ours, so that the numbers of parameters are equal within 5%. None of them is a dependency:
what is not installed is named as missing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.bench.contender import Contender, sampling, training
from stages.bench.workload import Inputs
from unclip.images import to_float

GUIDED_STEPS, PRIOR_STEPS = 50, 25
"""What diffusers' unCLIP and Stable Diffusion pipelines take by default."""


def open_clip_train(inputs: Inputs) -> Contender:
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    s = inputs.shapes
    vision = CLIPVisionCfg(s.layers, s.width, s.width // s.heads, patch_size=s.patch_size, image_size=s.image_size)
    text = CLIPTextCfg(s.context, s.vocab_size, width=s.width, heads=s.heads, layers=s.layers)
    model, contrast = CLIP(s.width, vision, text), open_clip.ClipLoss()
    model.visual.conv1 = nn.Conv2d(1, s.width, s.patch_size, s.patch_size, bias=False)  # grey, as ours
    images = to_float(inputs.pixels)
    return training("open_clip", model, lambda: contrast(*model(images, inputs.distinct)), len(images))


def diffusers_prior(inputs: Inputs) -> nn.Module:
    from diffusers import PriorTransformer

    s = inputs.shapes
    return PriorTransformer(s.heads, s.width // s.heads, s.layers, s.width, s.context, additional_embeddings=4)


def diffusers_train_prior(inputs: Inputs) -> Contender:
    """It takes captions that are padded to the context, as its pipelines pad them."""
    from diffusers import DDPMScheduler

    model, scheduler = diffusers_prior(inputs), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    clean = inputs.embeddings * inputs.shapes.width**0.5
    mask = torch.ones(inputs.encodings.shape[:2], dtype=torch.bool)

    def loss() -> Tensor:
        noised = scheduler.add_noise(clean, inputs.noise, inputs.t)
        return F.mse_loss(model(noised, inputs.t, inputs.text, inputs.encodings, mask).predicted_image_embedding, clean)

    return training("diffusers", model, loss, len(clean))


def dalle2_prior(inputs: Inputs) -> nn.Module:
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork

    s = inputs.shapes
    network = DiffusionPriorNetwork(  # its MLPs are gated: of three quarters the width they have as many parameters
        s.width, max_text_len=s.context, depth=s.layers, dim_head=s.width // s.heads, heads=s.heads, ff_mult=3.25
    )
    return DiffusionPrior(network, image_embed_dim=s.width, cond_drop_prob=0.1)


def dalle2_train_prior(inputs: Inputs) -> Contender:
    model, arguments = dalle2_prior(inputs), {"text_embed": inputs.text, "text_encodings": inputs.encodings}

    def loss() -> Tensor:
        return model(image_embed=inputs.embeddings.clone(), **arguments)  # which it scales in place

    return training("dalle2-pytorch", model, loss, len(inputs.embeddings))


def diffusers_unet(inputs: Inputs) -> nn.Module:
    """The UNet of its unCLIP pipelines: the condition's keys and values are concatenated to the image's own."""
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

    model, scheduler = diffusers_unet(inputs), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    rows = slice(inputs.shapes.decoder_batch)
    images, noise, t = to_float(inputs.pixels[rows]), inputs.pixel_noise[rows], inputs.t[rows]
    encodings, embeddings = inputs.encodings[rows], inputs.embeddings[rows]

    def loss() -> Tensor:
        noised = scheduler.add_noise(images, noise, t)
        return F.mse_loss(model(noised, t, encodings, class_labels=embeddings).sample, noise)

    return training("diffusers", model, loss, len(images))


def dalle2_decoder(inputs: Inputs) -> nn.Module:
    from dalle2_pytorch import Decoder, Unet

    s = inputs.shapes
    inner = tuple(level >= len(s.multipliers) - 2 for level in range(len(s.multipliers)))
    unet = Unet(
        s.channels,
        image_embed_dim=s.width,
        text_embed_dim=s.width,
        cond_dim=s.width - 8,  # it makes no tokens of the image embedding where the two are equal
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
    model, rows = dalle2_decoder(inputs), slice(inputs.shapes.decoder_batch)
    images = inputs.pixels[rows] / 255
    condition = {"image_embed": inputs.embeddings[rows], "text_encodings": inputs.encodings[rows]}
    return training("dalle2-pytorch", model, lambda: model(images, unet_number=1, **condition), len(images))


def diffusers_guided_step(inputs: Inputs) -> Contender:
    from diffusers import DDIMScheduler

    model, rows = diffusers_unet(inputs).eval(), slice(inputs.shapes.decoder_batch)
    scheduler, x = DDIMScheduler(beta_schedule="squaredcos_cap_v2"), inputs.pixel_noise[rows]
    scheduler.set_timesteps(GUIDED_STEPS)
    condition = inputs.encodings[rows].repeat(2, 1, 1), inputs.embeddings[rows].repeat(2, 1)
    t = scheduler.timesteps[GUIDED_STEPS // 2]
    return sampling("diffusers", [model], lambda: guided(model, scheduler, x, t, *condition), len(x))


def guided(model: nn.Module, scheduler, x: Tensor, t: Tensor, encodings: Tensor, embeddings: Tensor) -> Tensor:
    """A step of a diffusers scheduler, both halves of guidance in one batch as in its pipelines."""
    null, conditional = model(torch.cat([x, x]), t, encodings, class_labels=embeddings).sample.chunk(2)
    return scheduler.step(null + 2.5 * (conditional - null), t, x).prev_sample


def dalle2_guided_step(inputs: Inputs) -> Contender:
    model, rows = dalle2_decoder(inputs).eval(), slice(inputs.shapes.decoder_batch)
    x, t = inputs.pixel_noise[rows], torch.full((inputs.shapes.decoder_batch,), 500)
    condition = {"image_embed": inputs.embeddings[rows], "text_encodings": inputs.encodings[rows]}

    def step() -> Tensor:
        scheduler = model.noise_schedulers[0]
        return model.p_sample(model.unets[0], x, t, noise_scheduler=scheduler, cond_scale=2.5, **condition)[0]

    return sampling("dalle2-pytorch", [model.unets[0]], step, len(x))


def diffusers_draw(inputs: Inputs) -> Contender:
    """Its unCLIP pipeline's 25 guided steps of the prior, and 50 guided steps of DDIM."""
    from diffusers import DDIMScheduler, UnCLIPScheduler

    s, count = inputs.shapes, inputs.shapes.samples
    prior, unet = diffusers_prior(inputs).eval(), diffusers_unet(inputs).eval()
    encodings, text = inputs.encodings[:count].repeat(2, 1, 1), inputs.text[:count].repeat(2, 1)
    mask = torch.ones(2 * count, s.context, dtype=torch.bool)

    def drawn() -> Tensor:
        scheduler = UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)
        scheduler.set_timesteps(PRIOR_STEPS)
        z = inputs.noise[:count]
        following = [*scheduler.timesteps[1:], None]
        for t, t_next in zip(scheduler.timesteps, following, strict=True):
            both = prior(torch.cat([z, z]), t, text, encodings, mask).predicted_image_embedding
            null, conditional = both.chunk(2)
            z = scheduler.step(null + 4 * (conditional - null), t, z, prev_timestep=t_next).prev_sample
        scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
        scheduler.set_timesteps(GUIDED_STEPS)
        x = inputs.pixel_noise[:count]
        for t in scheduler.timesteps:
            x = guided(unet, scheduler, x, t, encodings, z.repeat(2, 1))
        return x

    return sampling("diffusers", [prior, unet], drawn, count)
