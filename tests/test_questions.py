"""Answers of the notebook's readers are judged, and nothing that they may write ends in an error."""

import math

import pytest
import torch

from stages.questions import QUESTIONS, check

NOISE = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
HALF = torch.tensor([True, False, True])
RIGHT = [
    (1, 0.69, ()),
    (2, torch.tensor(0.5), (HALF, torch.tensor([True, True, False]))),
    (3, 0.8, ()),
    (4, NOISE + 1e-4 * NOISE, (NOISE,)),
    (5, 160.0, ()),
    (6, 1.1, ()),
    (7, " B ", ()),
    (8, 1 / 3, (0.0,)),
]


@pytest.mark.parametrize(("number", "answer", "facts"), RIGHT)
def test_right_answer_passes(capsys, number, answer, facts):
    check(number, answer, *facts)
    assert capsys.readouterr().out == "right\n"


@pytest.mark.parametrize("nothing", [..., None])
def test_missing_answer_is_no_mistake(capsys, nothing):
    check(1, nothing)
    assert capsys.readouterr().out.startswith("not answered yet")


@pytest.mark.parametrize("answer", [0.5, math.nan, "two", {2}, len, [], NOISE, NOISE.T, 1j])
@pytest.mark.parametrize(("number", "facts"), [(1, ()), (4, (NOISE + 1,)), (7, ())])
def test_wrong_answer_gets_the_hint(capsys, number, answer, facts):
    check(number, answer, *facts)
    assert capsys.readouterr().out == f"not yet: {QUESTIONS[number].hint}\n"
