"""The decoder: its blocks against torch's own, and the laws that its condition keeps."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unclip.decoder import Decoder, DecoderConfig, draw_images
from unclip.decoder import sample as decoder_sample
from unclip.decoder.blocks import ConditionedAttention, ResBlock, downsample, group_norm, upsample
from unclip.prior import sample as prior_sample
from unclip.settings import Sampling

QUICK = settings(deadline=None, max_examples=20, derandomize=True)
CONFIG = DecoderConfig(
    embed_dim=6,
    text_width=5,
    image_size=8,
    width=8,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(1,),
    head_dim=8,
    condition_width=12,
    timesteps=50,
)
LENGTHS = [4, 2, 6]  # of the three captions


def randomise(module: nn.Module) -> nn.Module:
    """Fill every parameter, so that nothing that matters hides behind a zero."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
        if "norm" in name and name.endswith("weight"):
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return module.eval()


def random_decoder(**changes) -> Decoder:
    return randomise(Decoder(replace(CONFIG, **changes)))


def inputs(channels: int = 1, height: int = 8, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, height, width, generator=generator), torch.tensor([0, 20, 49])


def conditions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image embeddings, token encodings, and mask of three samples with captions of unequal length."""
    generator = torch.Generator().manual_seed(2)
    images = F.normalize(torch.randn(3, 6, generator=generator), dim=-1)
    encodings = torch.randn(3, 6, 5, generator=generator)
    return images, encodings, torch.arange(6) < torch.tensor(LENGTHS)[:, None]


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def differ(one, other) -> bool:
    """Every row differs."""
    return (one - other).abs().flatten(1).amax(dim=1).min().item() > 1e-3


# Blocks.


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize(("channels", "out"), [(8, 8), (8, 16), (16, 8)])
def test_a_residual_block_is_its_formula(scale_shift, channels, out):
    block = randomise(ResBlock(channels, out, 5, scale_shift))
    x, vector = torch.randn(2, channels, 4, 4), torch.randn(2, 5)

    def norm(h, layer):
        groups = h.unflatten(1, (layer.num_groups, -1))
        mean, variance = groups.mean(dim=(2, 3, 4), keepdim=True), groups.var(dim=(2, 3, 4), keepdim=True, correction=0)
        h = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        return h * layer.weight[:, None, None] + layer.bias[:, None, None]

    def silu(h):
        return h / (1 + (-h).exp())

    modulation = (vector @ block.modulation.weight.T + block.modulation.bias)[:, :, None, None]
    h = F.conv2d(silu(norm(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1)
    if scale_shift:
        scale, shift = modulation[:, :out], modulation[:, out:]
        h = norm(h, block.norm2) * (1 + scale) + shift
    else:
        h = norm(h + modulation, block.norm2)
    h = F.conv2d(silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    skip = x if channels == out else F.conv2d(x, block.skip.weight, block.skip.bias)
    close(block(x, vector), skip + h)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_a_fresh_residual_block_does_nothing(scale_shift):
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ResBlock(8, 8, 5, scale_shift)(x, torch.ones(2, 5)), x)
    assert torch.equal(ConditionedAttention(8, 5, 4)(x), x)


def test_dropout_acts_in_training_only():
    block = randomise(ResBlock(8, 8, 5, dropout=0.5))
    x, vector = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    assert torch.equal(block(x, vector), block(x, vector))
    block.train()
    assert not torch.equal(block(x, vector), block(x, vector))


@QUICK
@given(st.integers(1, 600))
def test_group_norm_takes_any_number_of_channels(channels):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert channels / norm.num_groups >= min(8, channels)


def test_usual_widths_get_groups_of_eight_or_more():
    assert [group_norm(c).num_groups for c in (4, 8, 48, 96, 256, 512)] == [1, 1, 6, 12, 32, 32]


@pytest.mark.parametrize("head_dim", [4, 8, 32])
def test_attention_without_condition_is_torchs_own(head_dim):
    attention = randomise(ConditionedAttention(16, 5, head_dim))
    reference = nn.MultiheadAttention(16, max(1, 16 // head_dim), batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attention.qkv.weight)
        reference.in_proj_bias.copy_(attention.qkv.bias)
    reference.out_proj.load_state_dict(attention.out.state_dict())
    x = torch.randn(2, 16, 3, 4)
    pixels = attention.norm(x).flatten(2).transpose(1, 2)
    want = reference(pixels, pixels, pixels, need_weights=False)[0].transpose(1, 2).reshape(2, 16, 3, 4)
    close(attention(x), x + want)


def test_attention_looks_at_the_condition_beside_the_image():
    """One head, one pixel after the other: softmax over the caption's keys that are not padding, and all pixels'."""
    attention = randomise(ConditionedAttention(8, 5, 8))
    x, tokens = torch.randn(2, 8, 2, 3), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    got = attention(x, tokens, mask)
    for b in range(2):
        pixels = attention.norm(x)[b].flatten(1).T
        q, k, v = attention.qkv(pixels).split(8, dim=1)
        ck, cv = attention.condition_kv(tokens[b, mask[b]]).split(8, dim=1)
        for i in range(6):
            shares = (torch.cat([ck, k]) @ q[i] / math.sqrt(8)).softmax(dim=0)
            out = attention.out(shares @ torch.cat([cv, v]))
            close(got[b, :, i // 3, i % 3], x[b, :, i // 3, i % 3] + out)


def test_a_condition_that_is_all_padding_is_no_condition():
    attention = randomise(ConditionedAttention(16, 5, 8))
    x, tokens = torch.randn(2, 16, 3, 4), torch.randn(2, 3, 5)
    close(attention(x, tokens, torch.zeros(2, 3, dtype=torch.bool)), attention(x))
    assert differ(attention(x, tokens, torch.ones(2, 3, dtype=torch.bool)), attention(x))


@pytest.mark.parametrize("channels", [1, 6, 40, 48, 100])
def test_attention_takes_any_number_of_channels(channels):
    x = torch.randn(1, channels, 2, 2)
    assert ConditionedAttention(channels, 5)(x, torch.randn(1, 2, 5), torch.ones(1, 2).bool()).shape == x.shape


@pytest.mark.parametrize("kind", ["conv", "pool"])
def test_resampling_halves_and_doubles(kind):
    x = torch.randn(1, 4, 6, 10)
    assert downsample(4, kind)(x).shape == (1, 4, 3, 5)
    assert upsample(4, kind)(x).shape == (1, 4, 12, 20)


def test_pooling_averages_and_repeats():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert downsample(1, "pool")(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(upsample(1, "pool")(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


# The network.


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("resample", ["conv", "pool"])
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("space_to_depth", [1, 2])
def test_an_untrained_decoder_puts_out_zero_for_any_size(scale_shift, resample, text, space_to_depth):
    torch.manual_seed(0)
    options = {"scale_shift": scale_shift, "resample": resample, "text": text, "space_to_depth": space_to_depth}
    for channels in (1, 3):
        decoder = Decoder(replace(CONFIG, channels=channels, multipliers=(1, 2, 2), **options))
        condition = decoder.condition(*conditions())
        for height, width in [(1, 1), (8, 8), (7, 9), (13, 4), (3, 16)]:
            x, t = inputs(channels, height, width)
            output = decoder(x, t, condition)
            assert output.shape == x.shape
            assert not output.any()


@QUICK
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2]))
def test_any_height_and_width_go_in_and_come_out(height, width, space_to_depth):
    decoder = random_decoder(space_to_depth=space_to_depth)
    x, t = inputs(1, height, width)
    output = decoder(x, t, decoder.condition(*conditions()))
    assert output.shape == x.shape
    assert output.isfinite().all()


def test_an_odd_size_is_padded_with_zeros_and_cropped():
    decoder = random_decoder()  # needs multiples of 4
    x, t = inputs(1, 5, 10)
    condition = decoder.condition(*conditions())
    padded = torch.zeros(3, 1, 8, 12)
    padded[:, :, 1:6, 1:11] = x
    close(decoder(x, t, condition), decoder(padded, t, condition)[:, :, 1:6, 1:11])


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("levels", "text_layers", "scale_shift"), [((), 0, True), ((0, 1), 2, False)])
def test_gradient_reaches_every_parameter(multipliers, blocks, levels, text_layers, scale_shift):
    decoder = random_decoder(
        multipliers=multipliers,
        blocks=blocks,
        attention_levels=levels,
        text_layers=text_layers,
        scale_shift=scale_shift,
        channels=3,
    )
    (x, t), drop = inputs(3), torch.tensor([False, True, False])
    decoder(x, t, decoder.condition(*conditions(), drop, drop.roll(1))).square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("what", ["t", "image", "encodings"])
def test_everything_it_is_told_has_an_effect(what):
    decoder = random_decoder()
    (x, t), (images, encodings, mask) = inputs(), conditions()
    before = decoder(x, t, decoder.condition(images, encodings, mask))
    if what == "t":
        t = 49 - t
    elif what == "image":
        images = -images
    else:
        encodings = -encodings
    assert differ(decoder(x, t, decoder.condition(images, encodings, mask)), before)


def test_a_batch_equals_its_singles():
    decoder = random_decoder()
    (x, t), (images, encodings, mask) = inputs(), conditions()
    drop_image, drop_text = torch.tensor([False, True, False]), torch.tensor([False, False, True])
    together = decoder(x, t, decoder.condition(images, encodings, mask, drop_image, drop_text))
    for i, n in enumerate(LENGTHS):
        one = slice(i, i + 1)
        alone = decoder.condition(images[one], encodings[one, :n], mask[one, :n], drop_image[one], drop_text[one])
        close(decoder(x[one], t[one], alone)[0], together[i])


def test_nothing_is_kept_between_calls():
    decoder = random_decoder()
    (x, t), condition = inputs(), decoder.condition(*conditions())
    modules = {name: set(vars(module)) for name, module in decoder.named_modules()}
    weights = {name: value.clone() for name, value in decoder.state_dict().items()}
    first = decoder(x, t, condition)
    decoder(*inputs(1, 5, 9), condition)
    assert torch.equal(decoder(x, t, condition), first)
    assert {name: set(vars(module)) for name, module in decoder.named_modules()} == modules
    assert all(torch.equal(value, weights[name]) for name, value in decoder.state_dict().items())


def test_the_process_is_that_of_the_config():
    d = random_decoder(prediction="eps", schedule="sigmoid").diffusion()
    assert (d.prediction, d.timesteps, d.schedule) == ("eps", 50, "sigmoid")


# The condition.


def test_the_image_gives_a_vector_and_four_tokens_before_the_captions():
    decoder = random_decoder()
    condition = decoder.condition(*conditions())
    assert condition.vector.shape == (3, 4 * 8)
    assert condition.tokens.shape == (3, 4 + 6, 12)
    assert condition.mask.sum(dim=1).tolist() == [4 + n for n in LENGTHS]
    scaled = decoder.image_condition.scaler.scale(conditions()[0])
    projection = decoder.image_condition.to_tokens
    close(condition.tokens[:, :4], (scaled @ projection.weight.T + projection.bias).view(3, 4, 12))


def test_padded_caption_tokens_have_no_influence():
    decoder = random_decoder(text_layers=2)
    (x, t), (images, encodings, mask) = inputs(), conditions()
    before = decoder(x, t, decoder.condition(images, encodings, mask))
    filled = torch.where(mask[..., None], encodings, 50.0)
    close(decoder(x, t, decoder.condition(images, filled, mask)), before)
    longer, longer_mask = F.pad(encodings, (0, 0, 0, 3), value=9.0), F.pad(mask, (0, 3), value=False)
    close(decoder(x, t, decoder.condition(images, longer, longer_mask)), before)


def test_a_dropped_image_tells_nothing():
    decoder = random_decoder()
    (x, t), (images, encodings, mask), drop = inputs(), conditions(), torch.ones(3, dtype=torch.bool)
    before = decoder(x, t, decoder.condition(images, encodings, mask, drop))
    close(decoder(x, t, decoder.condition(images.flip(0), encodings, mask, drop)), before)
    assert differ(decoder(x, t, decoder.condition(images, encodings, mask)), before)


def test_a_dropped_caption_tells_nothing_not_even_its_length():
    decoder = random_decoder()
    (x, t), (images, encodings, mask), drop = inputs(), conditions(), torch.ones(3, dtype=torch.bool)
    before = decoder(x, t, decoder.condition(images, encodings, mask, drop_text=drop))
    close(decoder(x, t, decoder.condition(images, encodings.flip(0) + 1, mask.flip(0), drop_text=drop)), before)
    close(decoder(x, t, decoder.condition(images, encodings[:, :1], mask[:, :1], drop_text=drop)), before)
    close(decoder(x, t, decoder.condition(images)), before)  # no captions at all
    assert differ(decoder(x, t, decoder.condition(images, encodings, mask)), before)


def test_a_decoder_without_text_ignores_captions():
    decoder = random_decoder(text=False)
    (x, t), (images, encodings, mask) = inputs(), conditions()
    assert torch.equal(
        decoder(x, t, decoder.condition(images, encodings, mask)), decoder(x, t, decoder.condition(images))
    )


# Drawing images.

SAMPLING = Sampling(steps=3, guidance=2.0, guidance_interval=(0.0, 1.0))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_batch_of_images_equals_its_singles(sampler, guidance):
    eta = 0.5 if sampler == "ddim" else 0.0
    decoder, sampling = random_decoder(channels=3), Sampling(steps=3, sampler=sampler, guidance=guidance, eta=eta)
    images, encodings, mask = conditions()
    together = draw_images(decoder, images, encodings, mask, [4, 5, 6], sampling)
    assert together.shape == (3, 3, 8, 8)
    assert together.abs().max() <= 1
    close(draw_images(decoder, images, encodings, mask, [4, 5, 6], replace(sampling, batch_size=2)), together)
    for i, n in enumerate(LENGTHS):
        one = slice(i, i + 1)
        close(draw_images(decoder, images[one], encodings[one, :n], mask[one, :n], [4 + i], sampling)[0], together[i])


def test_without_guidance_towards_the_condition_nothing_of_it_is_left():
    decoder, sampling = random_decoder(), replace(SAMPLING, guidance=0.0)
    images, encodings, mask = conditions()
    one = draw_images(decoder, images, encodings, mask, [0, 1, 2], sampling)
    close(draw_images(decoder, -images, -encodings, mask.flip(0), [0, 1, 2], sampling), one)
    drop = torch.ones(3, dtype=torch.bool)
    plain = replace(sampling, guidance=1.0)
    close(draw_images(decoder, images, encodings, mask, [0, 1, 2], plain, drop, drop), one)


def test_guidance_acts_within_its_interval_alone():
    decoder, seeds = random_decoder(), [0, 1, 2]  # its three steps are at times 49, 32 and 16 of 0 .. 49
    rows = conditions()
    always, never = (draw_images(decoder, *rows, seeds, replace(SAMPLING, guidance=w)) for w in (2.0, 1.0))

    def within(*interval: float) -> torch.Tensor:
        return draw_images(decoder, *rows, seeds, replace(SAMPLING, guidance_interval=interval))

    assert torch.equal(within(0.0, 1.0), always)
    assert torch.equal(within(16 / 49, 1.0), always)
    assert torch.equal(within(0.0, 0.3), never)
    first, middle = [], []
    for interval, states in (((0.0, 0.9), first), ((0.5, 0.9), middle)):
        sampling = replace(SAMPLING, guidance_interval=interval)
        draw_images(decoder, *rows, seeds, sampling, on_step=lambda t, x, x0, states=states: states.append(x0))
    plain = []
    draw_images(decoder, *rows, seeds, replace(SAMPLING, guidance=1.0), on_step=lambda t, x, x0: plain.append(x0))
    assert torch.equal(first[0], plain[0])  # unguided at 49
    assert torch.equal(first[1], middle[1])  # guided at 32
    assert differ(middle[1], plain[1])
    assert differ(first[2], middle[2])  # only the one is guided at 16


def test_every_step_shows_the_state_and_the_clipped_prediction():
    decoder, steps = random_decoder(), []
    drawn = draw_images(decoder, *conditions(), [0, 1, 2], SAMPLING, on_step=lambda t, x, x0: steps.append((t, x, x0)))
    assert [t for t, _, _ in steps] == [49, 32, 16]
    assert all(x0.abs().max() <= 1 and x.shape == x0.shape == drawn.shape for _, x, x0 in steps)
    assert torch.equal(steps[-1][2], drawn)


def test_equal_seeds_give_the_prior_and_the_decoder_unrelated_noise():
    assert decoder_sample.DECODER_STREAM != prior_sample.PRIOR_STREAM
