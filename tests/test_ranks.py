"""Several ranks, or a batch in several parts, give what one process with the whole batch gives."""

import pytest
import torch
from ranks import on_ranks
from runs import CPU
from three_stages import clip_stage, decoder_stage, make_inputs, prior_stage, seeded

from stages import loop, runtime
from stages.inputs import Inputs
from unclip.rows import Rows

STAGES = [clip_stage, prior_stage, decoder_stage]
BATCH = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("cache"))


def doubled(value):
    """A batch, or a tensor of it, in float64."""
    if isinstance(value, Rows):
        return value.map(doubled)
    return value.double() if value.is_floating_point() else value


def gradients(make, inputs: Inputs, parts: int = 1) -> dict[str, torch.Tensor]:
    """This rank's gradients in float64, with all weights moved away from where they start, which is partly zero."""
    stage = make(inputs)
    stage.objective.double()
    with torch.no_grad():
        for parameter in stage.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=seeded(1), dtype=parameter.dtype)
    stage.objective.parts = parts
    objective = runtime.distributed(stage.objective)
    batch = doubled(stage.batch(torch.arange(BATCH), seeded())).share(runtime.rank(), runtime.world_size())
    loss = loop.backward(objective, batch.split(parts), CPU, "float32")
    [loss] = runtime.mean_over_ranks([loss], CPU)
    return {"loss": torch.tensor(loss, dtype=torch.float64)} | {name: p.grad for name, p in stage.model.named_parameters()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], within: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(torch.as_tensor(found[name]), value, atol=within, rtol=within, msg=name)


def as_arrays(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_of_several_ranks_are_those_of_one_with_the_whole_batch(ranks, inputs):
    captions = clip_stage(inputs).batch(torch.arange(BATCH), seeded()).ids
    assert len(captions) < BATCH, "some caption describes several images"
    found = on_ranks(ranks, lambda: [as_arrays(gradients(make, inputs)) for make in STAGES])
    for expected, *each in zip([gradients(make, inputs) for make in STAGES], *found, strict=True):
        assert all(value.any() for value in expected.values())
        for one in each:
            assert_equal(one, expected)


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("make", STAGES)
def test_gradients_of_a_batch_in_parts_are_those_of_the_whole(make, parts, inputs):
    assert_equal(gradients(make, inputs, parts), gradients(make, inputs))
