"""Metrics against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unclip.metrics import recall_at_k, same_group_ceiling

QUICK = settings(deadline=None, max_examples=40, derandomize=True)


@QUICK
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 10), st.integers(0, 1000))
def test_recall_counts_the_rows_that_have_a_right_column_among_the_best(n, m, k, seed):
    generator = torch.Generator().manual_seed(seed)
    similarity, right = torch.randn(n, m, generator=generator), torch.rand(n, m, generator=generator) < 0.3
    hits = 0
    for row, good in zip(similarity.tolist(), right.tolist(), strict=True):
        hits += any(g and sum(other > value for other in row) < k for value, g in zip(row, good, strict=True))
    assert recall_at_k(similarity, right, k) == pytest.approx(hits / n)


@QUICK
@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.integers(0, 1000))
def test_the_ceiling_is_the_mean_over_images_of_their_cosine_to_the_rest_of_their_group(groups, seed):
    x = F.normalize(torch.randn(len(groups), 5, generator=torch.Generator().manual_seed(seed)), dim=-1)
    cosine = (x @ x.T).tolist()
    means = []
    for i, group in enumerate(groups):
        others = [cosine[i][j] for j in range(len(groups)) if j != i and groups[j] == group]
        means += [sum(others) / len(others)] if others else []
    got = same_group_ceiling(x, torch.tensor(groups))
    if means:
        assert got == pytest.approx(sum(means) / len(means), abs=1e-5)
    else:
        assert math.isnan(got)


def test_the_ceiling_of_groups_without_spread_is_one():
    x = F.normalize(torch.tensor([[1.0, 2], [3, 1], [1, 2], [3, 1], [3, 1]]), dim=-1)
    assert same_group_ceiling(x, torch.tensor([0, 1, 0, 1, 1])) == pytest.approx(1.0, abs=1e-6)
