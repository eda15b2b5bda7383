"""The shared layers against torch's own, and against slow loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import unclip.layers
from unclip.clip import CLIP, CLIPConfig, TextConfig
from unclip.decoder import DecoderConfig, DecoderNetwork, UNetConfig
from unclip.layers import (
    Block,
    EmbeddingScaler,
    GroupNorm,
    QuickGELU,
    StackedLinear,
    attend,
    causal_mask,
    init_transformer,
    replace_empty,
    timestep_embedding,
)
from unclip.prior import PriorConfig, PriorTransformer

QUICK = settings(deadline=None, max_examples=50, derandomize=True)


def test_a_block_equals_torchs_pre_norm_layer():
    torch.manual_seed(0)
    block = Block(12, 3)
    reference = nn.TransformerEncoderLayer(
        12, 3, dim_feedforward=48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    names = {"norm1": "norm1", "norm2": "norm2", "attention.out": "self_attn.out_proj", "mlp.0": "linear1"}
    names |= {"mlp.2": "linear2"}
    for ours, theirs in names.items():
        block.get_submodule(ours).load_state_dict(reference.get_submodule(theirs).state_dict())
    with torch.no_grad():
        reference.self_attn.in_proj_bias.normal_()
        block.attention.qkv.weight.copy_(reference.self_attn.in_proj_weight)
        block.attention.qkv.bias.copy_(reference.self_attn.in_proj_bias)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(block(x)[0], reference(x), rtol=1e-5, atol=1e-5)
    hidden = nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(block(x, causal_mask(5))[0], reference(x, hidden), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_block_continued_from_kept_keys_equals_one_causal_pass(cut):
    torch.manual_seed(0)
    block, x, mask = Block(8, 2), torch.randn(3, 7, 8), causal_mask(7)
    whole, (k, v) = block(x, mask)
    first, past = block(x[:, :cut], mask[:cut, :cut])
    second, (k_after, v_after) = block(x[:, cut:], mask[cut:], past)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(k_after, k)
    torch.testing.assert_close(v_after, v)


@pytest.mark.parametrize("at", [0, -1, torch.tensor([2, 0, 6])], ids=["first", "last", "each its own"])
def test_one_token_of_a_block_is_that_of_the_whole_with_the_same_gradients(at):
    torch.manual_seed(0)
    block, x, mask = Block(8, 2).double(), torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True), causal_mask(7)
    _, past = block(torch.randn(3, 2, 8, dtype=torch.float64))
    look = F.pad(mask, (2, 0), value=True)
    rows = torch.as_tensor(at).expand(3) % 7
    whole = block(x, look, past)[0][torch.arange(3), rows, None]
    alone = block(x, look[rows][:, None, None], past, at)[0]
    torch.testing.assert_close(alone, whole)
    inputs = [x, *block.parameters()]
    gradients = [torch.autograd.grad(output.square().sum(), inputs, retain_graph=True) for output in (alone, whole)]
    torch.testing.assert_close(*gradients)


def test_a_stack_of_maps_is_each_of_them_side_by_side():
    stack, x = StackedLinear(6, 4, stacks=3), torch.randn(2, 6)
    maps = [nn.functional.linear(x, w, b) for w, b in zip(stack.weight.split(4), stack.bias.split(4), strict=True)]
    torch.testing.assert_close(stack(x), torch.cat(maps, dim=1))
    assert stack.state_dict().keys() == nn.Linear(6, 12).state_dict().keys()


@pytest.mark.parametrize(
    "model",
    [
        CLIP(CLIPConfig(text=TextConfig(vocab_size=9, layers=1))),
        PriorTransformer(PriorConfig(embed_dim=128, text_width=32, context=8, width=96, heads=3, layers=1)),
        DecoderNetwork(DecoderConfig(UNetConfig(width=16), embed_dim=8, text_width=8)),
    ],
)
def test_what_is_stacked_says_so_and_nothing_else_does(model):
    """Shapes do not tell: a projection of 128 numbers to 4 x 96 has that of queries, keys and values of 128 each."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        assert getattr(module, "stacks", 1) == {"qkv": 3, "condition_kv": 2}.get(last, 1), name


def test_quick_gelu_is_its_formula_and_is_chosen_by_name():
    x = torch.linspace(-5, 5, 21)
    want = torch.tensor([v / (1 + math.exp(-1.702 * v)) for v in x.tolist()])
    torch.testing.assert_close(QuickGELU()(x), want)
    assert isinstance(Block(4, 1, activation="quick_gelu").mlp[1], QuickGELU)
    assert isinstance(Block(4, 1).mlp[1], nn.GELU)


def test_what_writes_to_the_residual_stream_starts_smaller_with_depth():
    torch.manual_seed(0)
    shallow, deep = (nn.ModuleList(Block(64, 2) for _ in range(n)) for n in (2, 8))
    init_transformer(shallow)
    init_transformer(deep)
    for name in ("attention.qkv", "mlp.0", "attention.out", "mlp.2"):
        a, b = shallow[0].get_submodule(name).weight.std(), deep[0].get_submodule(name).weight.std()
        assert (a / b).item() == pytest.approx(2 if name in ("attention.out", "mlp.2") else 1, rel=0.05)
    assert not any(p.any() for name, p in deep.named_parameters() if "bias" in name)


def test_the_causal_mask_looks_at_itself_and_back():
    mask = causal_mask(4)
    assert [[mask[i, j].item() for j in range(4)] for i in range(4)] == [[j <= i for j in range(4)] for i in range(4)]


@QUICK
@given(st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=5), st.integers(1, 33))
def test_timestep_embedding_equals_a_loop(times, dim):
    got = timestep_embedding(torch.tensor(times), dim)
    assert got.shape == (len(times), dim)
    half = dim // 2
    for row, t in zip(got.tolist(), times, strict=True):
        angles = [t * 10_000 ** (-i / half) for i in range(half)]
        want = [math.cos(a) for a in angles] + [math.sin(a) for a in angles] + [0.0] * (dim % 2)
        assert row == pytest.approx(want, abs=2e-4)  # angles up to 1000 in float32


def test_timestep_embedding_takes_whole_times_and_any_period():
    torch.testing.assert_close(timestep_embedding(torch.tensor([7]), 6), timestep_embedding(torch.tensor([7.0]), 6))
    want = torch.tensor([[math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]])
    torch.testing.assert_close(timestep_embedding(torch.tensor([3]), 4, max_period=100.0), want)


def tokens_of_four() -> tuple[torch.Tensor, torch.Tensor]:
    """Two numbers a token, of four captions of growing length; and their mask."""
    tokens = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(4))
    return tokens, torch.arange(5) <= torch.arange(4)[:, None]


@QUICK
@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_replacing_empty_captions_equals_a_slow_loop(empty):
    tokens, mask = tokens_of_four()
    null = torch.tensor([0.5, -2.0])
    got_tokens, got_mask = replace_empty(tokens, mask, torch.tensor(empty), null)
    for i, is_empty in enumerate(empty):
        want = [null.tolist()] * 5 if is_empty else tokens[i].tolist()
        assert got_tokens[i].tolist() == want
        assert got_mask[i].tolist() == ([True] + [False] * 4 if is_empty else mask[i].tolist())


def test_nothing_is_left_of_an_empty_caption_its_length_included():
    tokens, mask = replace_empty(*tokens_of_four(), torch.ones(4, dtype=torch.bool), torch.ones(2))
    assert torch.equal(tokens, tokens[:1].expand_as(tokens))
    assert torch.equal(mask, mask[:1].expand_as(mask))


def test_the_null_learns_from_empty_captions_alone():
    null = torch.zeros(2, requires_grad=True)
    tokens, mask = replace_empty(*tokens_of_four(), torch.tensor([False, True, False, False]), null)
    tokens[mask].sum().backward()
    assert null.grad.tolist() == [1.0, 1.0]  # its single token


def test_a_null_of_another_precision_takes_that_of_the_tokens():
    tokens, _ = replace_empty(*tokens_of_four(), torch.ones(4, dtype=torch.bool), torch.ones(2, dtype=torch.float64))
    assert tokens.dtype == torch.float32


def unit_embeddings(n: int = 500, dim: int = 6) -> torch.Tensor:
    """Points on the unit sphere, of unequal mean and spread in each coordinate."""
    torch.manual_seed(0)
    x = torch.randn(n, dim) * torch.linspace(0.2, 2, dim) + torch.linspace(-1, 1, dim)
    return nn.functional.normalize(x, dim=-1)


def test_scaled_embeddings_have_zero_mean_and_unit_variance():
    embeddings = unit_embeddings()
    scaled = EmbeddingScaler(6).fit(embeddings).scale(embeddings)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.var(dim=0, correction=0), torch.ones(6), rtol=1e-4, atol=0)


def test_an_unfitted_scaler_multiplies_by_the_root_of_the_dimension():
    embeddings = unit_embeddings()
    torch.testing.assert_close(EmbeddingScaler(6).scale(embeddings), embeddings * math.sqrt(6))


def test_a_constant_coordinate_is_not_blown_up():
    """Divided by its own deviation, rounding errors of a coordinate that never varies would count as signal."""
    embeddings = unit_embeddings()
    embeddings[:, 2] = 0.25 + 1e-7 * torch.randn(len(embeddings))
    scaler = EmbeddingScaler(6).fit(embeddings)
    assert scaler.scale(embeddings)[:, 2].abs().max() < 1e-3
    assert scaler.scale(embeddings).isfinite().all()


def test_the_statistics_travel_with_the_weights():
    fitted, fresh = EmbeddingScaler(6).fit(unit_embeddings()), EmbeddingScaler(6)
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh.scale(unit_embeddings()), fitted.scale(unit_embeddings()))


def test_attention_and_group_norm_of_bfloat16_are_computed_in_float32_on_a_cpu():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 8).bfloat16()
    norm = GroupNorm(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        attended, normed = attend(q, k, v, None), norm(q)
    exact = (q.double() @ k.double().mT / 8**0.5).softmax(dim=-1) @ v.double()
    torch.testing.assert_close(attended.double(), exact, atol=1e-6, rtol=1e-6)  # bfloat16 would be off by 1e-3
    torch.testing.assert_close(normed, nn.functional.group_norm(q.float(), 2))


@pytest.mark.parametrize("shape", [(7, 7), (1, 7), (1, 17), (5, 20)], ids=lambda shape: "{} on {}".format(*shape))
@pytest.mark.parametrize("kind", ["none", "one for all", "each its own", "each its own keys", "one row for all"])
def test_attention_to_few_keys_equals_the_fused_one_with_its_gradients(shape, kind, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    n, m = shape
    q, k, v = (torch.randn(3, 2, rows, 4, generator=generator).double().requires_grad_() for rows in (n, m, m))
    of = {"none": None, "one for all": (n, m), "one row for all": (1, m)}
    of = (of | {"each its own": (3, 1, n, m), "each its own keys": (3, 1, 1, m)})[kind]
    mask = None if of is None else torch.rand(of, generator=generator) < 0.5
    if mask is not None:
        mask[..., 0] = True  # each query has something to look at
    outputs = []
    for few in (m, m - 1):
        monkeypatch.setattr(unclip.layers, "FEW_KEYS", few)
        outputs.append(attend(q, k, v, mask))
    plain, fused = outputs
    torch.testing.assert_close(plain, fused)
    gradients = [torch.autograd.grad(output.sin().sum(), (q, k, v)) for output in (plain, fused)]
    torch.testing.assert_close(*gradients)


def test_decoder_in_bfloat16_has_the_gradient_of_float32():
    torch.manual_seed(0)
    unet = UNetConfig(width=16, condition_width=32, head_dim=8)
    model = DecoderNetwork(DecoderConfig(unet, embed_dim=8, text_width=8))
    nn.init.normal_(model.unet.conv_out.weight, std=0.02)
    none = torch.zeros(4, dtype=torch.bool)
    condition = model.condition(torch.randn(4, 8), none, torch.randn(4, 5, 8), torch.ones(4, 5) > 0, none)
    x, target, gradients = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model(x, torch.tensor([1, 200, 600, 900]), condition)
        loss = (output.float() - target).square().mean()
        parts = torch.autograd.grad(loss, list(model.unet.parameters()), retain_graph=True, allow_unused=True)
        gradients.append(torch.cat([part.flatten() for part in parts if part is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
