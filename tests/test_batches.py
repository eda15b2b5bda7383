"""The batches of a run: the same whether they are drawn one by one, by threads ahead, or share by share."""

from dataclasses import replace

import pytest
import torch
from toy import SETTINGS, LineStage, Points

from stages import batches as module
from stages.batches import PREFETCH, StepDraw, batches, draw_batch

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu_needed(monkeypatch):
    """A batch that is said to be for a GPU stays where it is."""
    monkeypatch.setattr(Points, "pin_memory", lambda self: self)
    monkeypatch.setattr(Points, "to", lambda self, device, non_blocking=False: self)


@pytest.mark.parametrize("first", [0, 5])
def test_threads_ahead_of_a_gpu_draw_the_same_batches_in_order(first, no_gpu_needed):
    config = replace(SETTINGS, steps=3 * PREFETCH)
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
    assert len(stage.batches) <= PREFETCH


def test_an_error_in_a_thread_is_raised_where_its_batch_is_asked_for(no_gpu_needed, monkeypatch):
    def broken(stage, config, step, even, draw=draw_batch):
        if step == 2:
            raise ValueError("step 2")
        return draw(stage, config, step)

    monkeypatch.setattr(module, "draw_batch", broken)
    to_come = batches(LineStage(), SETTINGS, 0, torch.device("cuda"))
    next(to_come), next(to_come)
    with pytest.raises(ValueError, match="step 2"):
        next(to_come)


# Shares, and noise.


def draw_of_step(step: int = 0, rank: int = 0, ranks: int = 1, seed: int = 0, count: int = 12) -> StepDraw:
    return StepDraw(torch.arange(count), torch.Generator().manual_seed(0), seed, step, rank, ranks)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_shares_of_all_ranks_are_the_batch(ranks):
    whole = draw_of_step()
    shares = [draw_of_step(rank=rank, ranks=ranks) for rank in range(ranks)]
    normal = torch.empty(12, 3, 2)
    for rank, share in enumerate(shares):
        assert torch.equal(share.share(share.rows), whole.rows[rank::ranks])
        normal[rank::ranks] = share.normal(3, 2)
    assert torch.equal(normal, whole.normal(3, 2))


def test_normal_numbers_have_their_moments():
    values = draw_of_step(count=500).normal(200).double()
    n = values.numel()
    assert abs(values.mean()) < 5 / n**0.5
    assert values.var().item() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert values.pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5)


def test_normal_numbers_of_steps_seeds_and_places_are_unrelated():
    """No two rows correlate beyond five standard errors."""
    draws = [draw_of_step(count=4), draw_of_step(step=1, count=4), draw_of_step(seed=1, count=4)]
    rows = torch.cat([draw.normal(2000) for draw in draws])
    assert (torch.corrcoef(rows) - torch.eye(12)).abs().max() < 5 / 2000**0.5


def test_normal_numbers_take_nothing_from_any_other_generator():
    draw, state = draw_of_step(), torch.get_rng_state()
    before = draw.generator.get_state()
    assert torch.equal(draw.normal(5), draw.normal(5))
    assert torch.equal(draw.generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), state)
