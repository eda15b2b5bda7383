"""Metrics against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unclip.metrics import recall_at_k, same_group_cosine

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
def test_the_ceiling_of_an_image_is_its_mean_cosine_to_the_rest_of_its_group(groups, seed):
    x = F.normalize(torch.randn(len(groups), 5, generator=torch.Generator().manual_seed(seed)), dim=-1)
    cosine = (x @ x.T).tolist()
    got = same_group_cosine(x, torch.tensor(groups)).tolist()
    for i, group in enumerate(groups):
        others = [cosine[i][j] for j in range(len(groups)) if j != i and groups[j] == group]
        assert got[i] == pytest.approx(sum(others) / len(others), abs=1e-5) if others else math.isnan(got[i])
