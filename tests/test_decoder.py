"""The decoder: its blocks against torch's own, its UNet alone, and the laws that its condition keeps."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unclip.clip import EncodedCaptions
from unclip.decoder import Decoder, DecoderConfig, UNet, UNetConfig
from unclip.decoder.blocks import ConditionedAttention, ResBlock, downsample, group_norm, upsample
from unclip.errors import UserError
from unclip.samplers import DECODER_STREAM, PRIOR_STREAM, RowNoise, guided
from unclip.settings import DecoderSettings

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


def embeddings() -> torch.Tensor:
    """Unit image embeddings (3, 6)."""
    return F.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(2)), dim=-1)


def captions() -> EncodedCaptions:
    """Three captions of unequal length. The decoder does not read their text embeddings."""
    encodings = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    return EncodedCaptions(torch.full((3, 6), torch.nan), encodings, mask, torch.zeros(3, dtype=torch.bool))


def other_captions() -> EncodedCaptions:
    """Three of other words and lengths."""
    return replace(captions(), encodings=-captions().encodings, mask=captions().mask.flip(0))


def alone(row: int) -> EncodedCaptions:
    """One of the captions, without padding."""
    one, n = captions()[row : row + 1], LENGTHS[row]
    return replace(one, encodings=one.encodings[:, :n], mask=one.mask[:, :n])


NONE, ALL = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def differ(one, other) -> bool:
    """Every row differs."""
    return (one - other).abs().flatten(1).amax(dim=1).min().item() > 1e-3


# Blocks.


@pytest.mark.parametrize(("channels", "out"), [(8, 8), (8, 16), (16, 8)])
def test_a_residual_block_is_its_formula(channels, out):
    block = randomise(ResBlock(channels, out, 5))
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
    h = norm(h, block.norm2) * (1 + modulation[:, :out]) + modulation[:, out:]
    h = F.conv2d(silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    skip = x if channels == out else F.conv2d(x, block.skip.weight, block.skip.bias)
    close(block(x, vector), skip + h)


def test_a_fresh_block_does_nothing():
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ResBlock(8, 8, 5)(x, torch.ones(2, 5)), x)
    assert torch.equal(ConditionedAttention(8, 5, 4)(x), x)


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


def test_resampling_halves_and_doubles():
    x = torch.randn(1, 4, 6, 10)
    assert downsample(4)(x).shape == (1, 4, 3, 5)
    assert upsample(4)(x).shape == (1, 4, 12, 20)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_doubling_in_one_is_nearest_neighbours_and_a_convolution_with_the_same_gradients(memory_format):
    torch.manual_seed(0)
    doubling, x = upsample(4).double().to(memory_format=memory_format), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    plain, inputs = nn.Sequential(*doubling), [x.requires_grad_(), *doubling.parameters()]
    torch.testing.assert_close(doubling(x), plain(x))
    gradients = [torch.autograd.grad(module(x).pow(3).sum(), inputs) for module in (doubling, plain)]
    torch.testing.assert_close(*gradients)


# The UNet alone: it knows no caption and no time.

ALONE = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention_levels=(1,), head_dim=8, condition_width=12)


def unet_inputs(channels: int = 2, height: int = 8, width: int = 8) -> tuple[torch.Tensor, ...]:
    """Images, a vector, three tokens, and which of them count."""
    generator = torch.Generator().manual_seed(4)
    x, vector = torch.randn(3, channels, height, width, generator=generator), torch.randn(3, 32, generator=generator)
    mask = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    return x, vector, torch.randn(3, 3, 12, generator=generator), mask


@QUICK
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2]), st.sampled_from([(2, 2), (6, 3), (1, 4)]))
def test_any_height_and_width_go_in_and_come_out(height, width, space_to_depth, channels):
    """And any number of channels: an upsampler takes the small image beside the noised one."""
    unet = randomise(UNet(replace(ALONE, space_to_depth=space_to_depth), *channels))
    output = unet(*unet_inputs(channels[0], height, width))
    assert output.shape == (3, channels[1], height, width)
    assert output.isfinite().all()


def test_a_fresh_unet_puts_out_zero_for_any_size():
    for multipliers, levels, space_to_depth in [((1, 2, 2), (1,), 1), ((1, 2, 2), (1,), 2), ((1,), (), 2)]:
        shape = {"multipliers": multipliers, "attention_levels": levels, "space_to_depth": space_to_depth}
        unet = UNet(replace(ALONE, **shape), 2, 3)
        for size in [(1, 1), (8, 8), (7, 9), (13, 4), (3, 16)]:
            assert torch.equal(unet(*unet_inputs(2, *size)), torch.zeros(3, 3, *size))


def test_an_odd_size_is_padded_with_zeros_and_cropped():
    unet = randomise(UNet(ALONE, 2, 2))  # needs multiples of 4
    x, *condition = unet_inputs(2, 5, 10)
    padded = F.pad(x, (1, 1, 1, 2))
    close(unet(x, *condition), unet(padded, *condition)[:, :, 1:6, 1:11])


def test_a_masked_token_has_no_influence_and_others_come_in_any_order():
    unet = randomise(UNet(ALONE, 2, 2))
    x, vector, tokens, mask = unet_inputs()
    before = unet(x, vector, tokens, mask)
    close(unet(x, vector, torch.where(mask[..., None], tokens, 50.0), mask), before)
    close(unet(x, vector, tokens.flip(1), mask.flip(1)), before)
    close(unet(x, vector, F.pad(tokens, (0, 0, 0, 2), value=9.0), F.pad(mask, (0, 2))), before)
    assert differ(unet(x, vector, tokens, ~mask), before)


def test_a_unet_without_tokens_is_one_whose_tokens_are_all_masked():
    unet = randomise(UNet(ALONE, 2, 2))
    x, vector, tokens, mask = unet_inputs()
    close(unet(x, vector, tokens[:, :0], mask[:, :0]), unet(x, vector, tokens, torch.zeros_like(mask)))


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_the_image_the_vector_and_the_tokens_have_an_effect(argument):
    unet = randomise(UNet(ALONE, 2, 2))
    before = [*unet_inputs()[:3], torch.ones(3, 3, dtype=torch.bool)]
    after = [-part if i == argument else part for i, part in enumerate(before)]
    assert differ(unet(*after), unet(*before))


def test_rows_of_a_unet_do_not_see_each_other():
    unet, rows = randomise(UNet(ALONE, 2, 2)), unet_inputs()
    together = unet(*rows)
    for i in range(3):
        close(unet(*(part[i : i + 1] for part in rows))[0], together[i])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be from 1 to 4096, not 0"),
        ({"multipliers": ()}, "multipliers must be 1 to 8 numbers"),
        ({"multipliers": (1, 0)}, "multipliers must be from 1 to 64, not 0"),
        ({"blocks": 0}, "blocks must be from 1 to 32, not 0"),
        ({"multipliers": (1, 2), "attention_levels": (0, 2)}, "attention_levels must be below 2, the number of levels"),
    ],
)
def test_a_unet_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        UNet(replace(ALONE, **change), 1, 1)


# The network.


def test_a_decoder_is_its_condition_and_a_unet():
    decoder = random_decoder()
    (x, t), condition = inputs(), decoder.condition(embeddings(), captions(), NONE)
    assert set(dict(decoder.named_children())) == {"image_condition", "text_condition", "time", "unet"}
    tokens = []
    decoder.unet.register_forward_hook(lambda module, given, _: tokens.append(given))
    output = decoder(x, t, condition)
    [(got_x, vector, got_tokens, mask)] = tokens
    assert got_x is x
    assert got_tokens is condition.tokens
    assert mask is condition.mask
    assert torch.equal(decoder.unet(x, vector, got_tokens, mask), output)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_untrained_decoder_puts_out_zero_for_any_size(text, channels):
    decoder = Decoder(replace(CONFIG, channels=channels, text=text))
    condition = decoder.condition(embeddings(), captions(), NONE)
    for size in [(8, 8), (7, 9)]:
        x, t = inputs(channels, *size)
        assert torch.equal(decoder(x, t, condition), torch.zeros_like(x))


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("levels", "text_layers"), [((), 0), ((0, 1), 2)])
def test_gradient_reaches_every_parameter(multipliers, blocks, levels, text_layers):
    levels = tuple(level for level in levels if level < len(multipliers))
    config = {"multipliers": multipliers, "blocks": blocks, "attention_levels": levels, "text_layers": text_layers}
    decoder = random_decoder(**config, channels=3)
    (x, t), drop = inputs(3), torch.tensor([False, True, False])
    condition = decoder.condition(embeddings(), captions().drop(drop.roll(1)), drop)
    decoder(x, t, condition).square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_everything_it_is_told_has_an_effect():
    decoder = random_decoder()
    (x, t), rows = inputs(), embeddings()
    before = decoder(x, t, decoder.condition(rows, captions(), NONE))
    assert differ(decoder(x, 49 - t, decoder.condition(rows, captions(), NONE)), before)
    assert differ(decoder(x, t, decoder.condition(-rows, captions(), NONE)), before)
    assert differ(decoder(x, t, decoder.condition(rows, other_captions(), NONE)), before)


def test_a_batch_equals_its_singles():
    decoder = random_decoder()
    (x, t), drop = inputs(), torch.tensor([False, True, False])
    together = decoder(x, t, decoder.condition(embeddings(), captions().drop(drop.roll(1)), drop))
    for i in range(3):
        one = slice(i, i + 1)
        condition = decoder.condition(embeddings()[one], alone(i).drop(drop.roll(1)[one]), drop[one])
        close(decoder(x[one], t[one], condition)[0], together[i])


def test_nothing_is_kept_between_calls():
    decoder = random_decoder()
    (x, t), condition = inputs(), decoder.condition(embeddings(), captions(), NONE)
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
    condition = decoder.condition(embeddings(), captions(), NONE)
    assert condition.vector.shape == (3, 4 * 8)
    assert condition.tokens.shape == (3, 4 + 6, 12)
    assert condition.mask.sum(dim=1).tolist() == [4 + n for n in LENGTHS]
    scaled = decoder.image_condition.scaler.scale(embeddings())
    projection = decoder.image_condition.to_tokens
    close(condition.tokens[:, :4], (scaled @ projection.weight.T + projection.bias).view(3, 4, 12))


def test_padded_caption_tokens_have_no_influence():
    decoder = random_decoder(text_layers=2)
    (x, t), some = inputs(), captions()
    before = decoder(x, t, decoder.condition(embeddings(), some, NONE))
    filled = replace(some, encodings=torch.where(some.mask[..., None], some.encodings, 50.0))
    close(decoder(x, t, decoder.condition(embeddings(), filled, NONE)), before)
    longer = replace(some, encodings=F.pad(some.encodings, (0, 0, 0, 3), value=9.0), mask=F.pad(some.mask, (0, 3)))
    close(decoder(x, t, decoder.condition(embeddings(), longer, NONE)), before)


def test_a_dropped_image_tells_nothing():
    decoder = random_decoder()
    x, t = inputs()
    before = decoder(x, t, decoder.condition(embeddings(), captions(), ALL))
    close(decoder(x, t, decoder.condition(-embeddings(), captions(), ALL)), before)
    assert differ(decoder(x, t, decoder.condition(embeddings(), captions(), NONE)), before)


def test_an_empty_caption_tells_nothing_not_even_its_length():
    decoder = random_decoder()
    (x, t), null = inputs(), captions().null()
    before = decoder(x, t, decoder.condition(embeddings(), null, NONE))
    close(decoder(x, t, decoder.condition(embeddings(), other_captions().null(), NONE)), before)
    short = replace(null, encodings=null.encodings[:, :1], mask=null.mask[:, :1])
    close(decoder(x, t, decoder.condition(embeddings(), short, NONE)), before)
    assert differ(decoder(x, t, decoder.condition(embeddings(), captions(), NONE)), before)


def test_a_decoder_without_text_ignores_captions():
    decoder = random_decoder(text=False)
    one, other = (decoder.condition(embeddings(), some, NONE) for some in (captions(), other_captions().null()))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.mask, other.mask)
    assert one.tokens.shape == (3, 4, 12)


# Drawing images.

SEEDS = [0, 1, 2]
THREE = DecoderSettings(steps=3, guidance=2.0, guidance_interval=(0.0, 1.0))
PLAIN = replace(THREE, guidance=1.0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_batch_of_images_equals_its_singles(sampler, guidance):
    eta = 0.5 if sampler == "ddim" else 0.0
    decoder, settings = random_decoder(channels=3), DecoderSettings(3, guidance, sampler=sampler, eta=eta)
    together = decoder.draw(embeddings(), captions(), [4, 5, 6], settings)
    assert together.shape == (3, 3, 8, 8)
    assert together.abs().max() <= 1
    for i in range(3):
        close(decoder.draw(embeddings()[i : i + 1], alone(i), [4 + i], settings)[0], together[i])


def test_without_guidance_towards_the_condition_nothing_of_it_is_left():
    decoder, towards = random_decoder(), replace(THREE, guidance=0.0)
    one = decoder.draw(embeddings(), captions(), SEEDS, towards)
    close(decoder.draw(-embeddings(), other_captions(), SEEDS, towards), one)
    close(decoder.draw(None, captions().null(), SEEDS, PLAIN), one)


def test_no_embeddings_are_dropped_ones():
    """The caption is still read, and guided by."""
    decoder = random_decoder()
    denoise = decoder.denoiser(None, captions(), THREE)
    pairs = EncodedCaptions.cat([captions(), captions().null()])
    both = decoder.condition(embeddings().repeat(2, 1), pairs, ALL.repeat(2))
    model = guided(lambda x, t: decoder(x, t, both), 2.0)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    close(denoise(x, 30), decoder.diffusion().denoiser(model, clip_x0=1.0)(x, 30))
    assert differ(denoise(x, 30), decoder.denoiser(None, other_captions(), THREE)(x, 30))


def test_guidance_acts_within_its_interval_alone():
    """The three steps are at times 49, 32 and 16 of 0 .. 49."""
    decoder, x = random_decoder(), inputs()[0]

    def predictions(guidance: float, *interval: float) -> list[torch.Tensor]:
        settings = replace(THREE, guidance=guidance, guidance_interval=interval)
        denoise = decoder.denoiser(embeddings(), captions(), settings)
        return [denoise(x, t) for t in (49, 32, 16)]

    always, never = predictions(2.0, 0.0, 1.0), predictions(1.0, 0.0, 1.0)
    assert all(differ(one, other) for one, other in zip(always, never, strict=True))
    for interval, inside in [((0.0, 0.3), "nnn"), ((0.0, 0.9), "nyy"), ((0.5, 0.9), "nyn"), ((16 / 49, 1.0), "yyy")]:
        want = [(always if inside[i] == "y" else never)[i] for i in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(predictions(2.0, *interval), want, strict=True)), interval


def test_every_step_shows_the_state_and_the_clipped_prediction():
    decoder, steps = random_decoder(), []
    rows = (embeddings(), captions(), SEEDS, THREE)
    drawn = decoder.draw(*rows, on_step=lambda *step: steps.append(step))
    assert [t for t, _, _ in steps] == [49, 32, 16]
    assert all(x0.abs().max() <= 1 and x.shape == x0.shape == drawn.shape for _, x, x0 in steps)
    assert torch.equal(steps[0][1], decoder.noise(SEEDS))
    assert torch.equal(steps[-1][2], drawn)
    assert torch.equal(decoder.draw(*rows), drawn)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_noise_that_is_given_takes_the_place_of_that_of_the_seeds(sampler):
    """What a noisy sampler adds on the way stays that of the seeds, so that the seeds' own noise changes nothing."""
    decoder, settings = random_decoder(), replace(THREE, sampler=sampler)
    rows = (embeddings(), captions(), SEEDS, settings)
    assert torch.equal(decoder.draw(*rows, noise=decoder.noise(SEEDS)), decoder.draw(*rows))
    steps = []
    other = decoder.draw(*rows, noise=decoder.noise([7, 8, 9]), on_step=lambda *step: steps.append(step))
    assert torch.equal(steps[0][1], decoder.noise([7, 8, 9]))
    assert differ(other, decoder.draw(*rows))
    assert torch.equal(other, decoder.draw(*rows[:2], [7, 8, 9], settings)) == (sampler == "dpmpp")


def test_noise_depends_on_the_seed_alone():
    decoder = random_decoder(channels=3)
    noise = decoder.noise([5, 6, 5])
    assert noise.shape == (3, 3, 8, 8)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1], RowNoise([6], DECODER_STREAM)(noise[:1])[0])


def test_inversion_finds_noise_that_leads_back():
    """Better with more steps. A small network, whose predictions hardly change along the way: the ODE is then easy."""
    decoder = random_decoder()
    with torch.no_grad():
        decoder.unet.conv_out.weight.mul_(0.05)
    images, errors = 0.5 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(6)).clamp(-1, 1), []
    for steps in (10, 50):
        settings = DecoderSettings(steps, sampler="ddim", guidance=1.0)
        noise = decoder.invert(images, embeddings(), captions(), settings)
        drawn = decoder.draw(embeddings(), captions(), SEEDS, settings, noise)
        errors.append((drawn - images).abs().mean().item())
    assert errors[1] < 0.1
    assert errors[1] < 0.5 * errors[0]


def test_equal_seeds_give_the_prior_and_the_decoder_unrelated_noise():
    assert DECODER_STREAM != PRIOR_STREAM


def test_image_tokens_are_at_least_one():
    with pytest.raises(UserError, match="image_tokens must be from 1 to 256, not 0"):
        Decoder(replace(CONFIG, image_tokens=0))
