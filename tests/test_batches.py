"""The batches of a run: the same whether they are drawn one by one or by threads ahead."""

from dataclasses import replace

import pytest
import torch
from toy import SETTINGS, LineStage, Points

from stages import batches as module
from stages.batches import AHEAD, batches

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu_needed(monkeypatch):
    """What is said to be for a GPU stays where it is."""
    monkeypatch.setattr(Points, "pin_memory", lambda self: self)
    monkeypatch.setattr(Points, "to", lambda self, device, non_blocking=False: self)


@pytest.mark.parametrize("first", [0, 5])
def test_threads_ahead_of_a_gpu_draw_the_same_batches_in_order(first, no_gpu_needed):
    config = replace(SETTINGS, steps=3 * AHEAD)
    one_by_one = list(batches(LineStage(), config, first, CPU))
    ahead = list(batches(LineStage(), config, first, torch.device("cuda")))
    assert len(ahead) == len(one_by_one) == config.steps - first
    for one, other in zip(one_by_one, ahead, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)


def test_no_more_than_so_many_batches_are_drawn_ahead(no_gpu_needed):
    stage = LineStage()
    to_come = batches(stage, replace(SETTINGS, steps=100), 0, torch.device("cuda"))
    next(to_come)
    to_come.close()
    assert len(stage.batches) <= AHEAD


def test_an_error_in_a_thread_is_raised_where_its_batch_is_asked_for(no_gpu_needed, monkeypatch):
    def broken(stage, config, step, draw=module.draw):
        if step == 2:
            raise ValueError("step 2")
        return draw(stage, config, step)

    monkeypatch.setattr(module, "draw", broken)
    to_come = batches(LineStage(), SETTINGS, 0, torch.device("cuda"))
    next(to_come), next(to_come)
    with pytest.raises(ValueError, match="step 2"):
        next(to_come)
