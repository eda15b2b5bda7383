"""The questions of walkthrough.ipynb: their right answers, and hints for those who have not found them yet."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Question:
    answer: Callable[..., Any]
    """Computes the right answer from the facts that the notebook gives: a number, a tensor or a word."""
    hint: str


QUESTIONS = {
    1: Question(
        lambda: math.log(2),
        "two columns have the same, highest logit; which probability does softmax give to the right one?",
    ),
    2: Question(
        lambda is_shoe, closer: is_shoe[closer].float().mean(),
        "is_shoe[closer] holds the chosen images alone; take the mean of it as float",
    ),
    3: Question(lambda: 0.8, "the squares of alpha and sigma add up to 1"),
    4: Question(lambda noise: noise, "sigma x + alpha v = (sigma^2 + alpha^2) eps, and the squares add up to 1"),
    5: Question(lambda: 8 * 2 * 10, "8 embeddings, each with 2 candidates, each of them in 10 steps"),
    6: Question(
        lambda: 0.2 + 3 * (0.5 - 0.2), "start at the answer without the condition, and go three times the difference"
    ),
    7: Question(
        lambda: "b", "the least squared error has the mean of all that fits, and equal inputs have equal outputs"
    ),
    8: Question(
        lambda cosine: 1 - math.acos(0.5) / math.acos(cosine),
        "the angle at the start is acos(cosine); at the end it is acos(0.5), the share 1 - amount of it",
    ),
}


def check(number: int, answer: Any, *facts: Any) -> None:
    """Print whether an answer to a question is right, or a hint if it is not.

    Args:
        answer: the reader's; `...` or None where there is none yet.
        facts: what the right answer is computed from.
    """
    question = QUESTIONS[number]
    if answer is None or answer is ...:
        print("not answered yet: put your answer in place of the three dots, and run the cell again")
    else:
        print("right" if is_right(answer, question.answer(*facts)) else f"not yet: {question.hint}")


def is_right(answer: Any, right: Any) -> bool:
    """Compare words without regard to case, and numbers or tensors of one shape within 1%."""
    if isinstance(right, str):
        return isinstance(answer, str) and answer.strip().lower() == right.lower()
    try:
        given = torch.as_tensor(answer, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    expected = torch.as_tensor(right, dtype=torch.float64)
    return given.shape == expected.shape and torch.allclose(given, expected, rtol=0.01, atol=1e-6)
