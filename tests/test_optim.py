"""The optimiser's groups, its schedule, and the moving average, each against a closed form or a slow loop."""

import math

import pytest
import torch
from torch import nn

from stages.optim import Muon, cosine_warmup, make_optimizers, orthogonalised, update_ema
from unclip.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from unclip.decoder import DecoderConfig, DecoderNetwork, UNetConfig
from unclip.prior import PriorConfig, PriorTransformer

MODELS = {
    "clip": lambda: CLIP(
        CLIPConfig(8, VisionConfig(width=8, layers=1, heads=2), TextConfig(20, context=6, width=8, layers=1, heads=2))
    ),
    "prior": lambda: PriorTransformer(PriorConfig(embed_dim=8, text_width=8, context=6, width=8, layers=1, heads=2)),
    "decoder": lambda: DecoderNetwork(
        DecoderConfig(UNetConfig(width=8, condition_width=32, head_dim=8), embed_dim=8, text_width=8)
    ),
}


def test_schedule_warms_up_linearly_then_follows_half_a_cosine():
    steps, warmup = 100, 20
    for step in range(warmup):
        assert cosine_warmup(step, steps, warmup) == pytest.approx((step + 1) / 20)
    for step in range(warmup, steps):
        expected = 0.5 + 0.5 * math.cos(math.pi * (step - 20) / 80)
        assert cosine_warmup(step, steps, warmup) == pytest.approx(expected, abs=1e-12)
    assert cosine_warmup(20, steps, warmup) == 1
    assert cosine_warmup(60, steps, warmup) == pytest.approx(0.5)
    assert cosine_warmup(100, steps, warmup) == pytest.approx(0, abs=1e-12)


def test_schedule_stays_at_zero_after_the_end_and_needs_no_warmup():
    assert cosine_warmup(500, 100, 20) == pytest.approx(0)
    assert cosine_warmup(0, 100, 0) == 1
    assert [cosine_warmup(step, 2, 2) for step in range(2)] == [0.5, 1.0]  # all warm-up


@pytest.mark.parametrize("name", MODELS)
def test_only_matrices_and_convolutions_decay(name):
    model = MODELS[name]()
    [optimizer] = make_optimizers(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    matrices = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.1 if parameter_name in matrices else 0.0), parameter_name
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


def test_embeddings_positions_norms_and_biases_do_not_shrink():
    model = MODELS["clip"]()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    [optimizer] = make_optimizers(model, lr=0.5, weight_decay=0.1, betas=(0.9, 0.95))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = ("text.tokens.weight", "text.positions", "vision.positions", "vision.class_token", "logit_scale",
            "vision.norm_pre.weight", "text.blocks.0.mlp.0.bias")  # fmt: skip
    for name in kept:
        assert torch.equal(model.get_parameter(name), before[name]), name
    for name in ("vision.patch.weight", "text.projection.weight", "text.blocks.0.mlp.0.weight"):
        torch.testing.assert_close(model.get_parameter(name), 0.95 * before[name])


def test_moving_average_equals_a_slow_loop():
    torch.manual_seed(0)
    model, average = nn.Linear(3, 2), nn.Linear(3, 2)
    average.load_state_dict(model.state_dict())
    expected = [value.item() for value in torch.cat([p.flatten() for p in average.parameters()])]
    for step in range(200):
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
        update_ema(average, model, step, 0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        new = torch.cat([p.detach().flatten() for p in model.parameters()])
        expected = [decay * old + (1 - decay) * value.item() for old, value in zip(expected, new, strict=True)]
    found = torch.cat([p.detach().flatten() for p in average.parameters()])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_moving_average_forgets_the_start_quickly():
    model, average = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.zeros_(average.weight)
    update_ema(average, model, 0, 0.999)
    assert average.weight.item() == pytest.approx(0.9)
    assert not average.weight.requires_grad or average.weight.grad is None


def test_orthogonalised_keeps_the_singular_vectors_and_makes_the_values_nearly_one():
    torch.manual_seed(0)
    for shape in ((12, 12), (8, 40), (40, 8)):
        matrix = torch.randn(shape, dtype=torch.float64)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        core = u.T @ orthogonalised(matrix[None])[0] @ vh.T  # diagonal where the singular vectors are kept
        assert core.diagonal().min() > 0.6
        assert core.diagonal().max() < 1.3
        torch.testing.assert_close(core, torch.diag(core.diagonal()), atol=1e-9, rtol=0)


def test_muon_steps_by_the_orthogonalised_momentum():
    """Two steps against the formulas, for a matrix, for stacked queries, keys and values, and for a convolution."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((12, 4), (12, 4), (5, 3, 3, 3))]
    expected, momenta = [w.detach().clone() for w in weights], [torch.zeros_like(w) for w in weights]
    optimizer = Muon(weights, lr=0.1, weight_decay=0.5, momentum=0.9, stacks=(1, 3, 1))
    for _ in range(2):
        for i, weight in enumerate(weights):
            weight.grad = torch.randn_like(weight)
            momenta[i] = 0.9 * momenta[i] + 0.1 * weight.grad
            update = (0.1 * weight.grad + 0.9 * momenta[i]).flatten(1)
            parts = update.chunk(3) if i == 1 else [update]
            moved = torch.cat([orthogonalised(p[None])[0] * 0.2 * math.sqrt(max(p.shape)) for p in parts])
            expected[i] = expected[i] * (1 - 0.1 * 0.5) - 0.1 * moved.view_as(weight)
        optimizer.step()
    for weight, value in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), value)


@pytest.mark.parametrize("name", MODELS)
def test_muon_takes_what_decays_and_adamw_the_rest(name):
    model = MODELS[name]()
    [alone] = make_optimizers(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    muon, adamw = make_optimizers(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), muon_lr=0.02)
    assert isinstance(muon, Muon)
    groups = (muon.param_groups, adamw.param_groups, alone.param_groups[:1], alone.param_groups[1:])
    ids = [{id(p) for group in part for p in group["params"]} for part in groups]
    assert ids[0] == ids[2]
    assert ids[1] == ids[3]
    assert [group["peak"] for group in (*muon.param_groups, *adamw.param_groups)] == [0.02, 1e-3]


def test_muon_takes_a_matrix_apart_by_what_it_stacks_not_by_its_shape():
    model = MODELS["decoder"]()
    muon, _ = make_optimizers(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), muon_lr=0.02)
    names = {parameter: name for name, parameter in model.named_parameters()}
    stacks = {names[parameter]: count for parameter, count in muon.stacks.items()}
    for name, count in stacks.items():
        assert count == (3 if name.endswith("qkv.weight") else 2 if name.endswith("condition_kv.weight") else 1), name
    assert {1, 2, 3} <= set(stacks.values())
    plain = nn.Linear(4, 12)  # three times as high as wide, and one map all the same
    muon, _ = make_optimizers(plain, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), muon_lr=0.02)
    assert list(muon.stacks.values()) == [1]
