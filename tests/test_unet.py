"""The UNet and its blocks, against torch's own and by the laws that they keep."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import close, differ, randomise
from torch import nn

from unclip.decoder.unet import (
    ConditionedAttention,
    ResBlock,
    UNet,
    UNetConfig,
    downsample,
    group_norm,
    upsample,
)
from unclip.errors import UserError

QUICK = settings(deadline=None, max_examples=20, derandomize=True)

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
