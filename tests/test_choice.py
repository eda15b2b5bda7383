"""Which draw is kept, beside the same rule followed by hand for one caption at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unclip.prior.reranking import SAME, Reranker

QUICK = settings(deadline=None, max_examples=60, derandomize=True)


def units(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def fitted(rivals: torch.Tensor, scale: float = 4.0) -> Reranker:
    choice = Reranker(rivals.shape[1], len(rivals))
    choice.fit(rivals, scale)
    return choice


@QUICK
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6), st.floats(0, 1))
def test_of_a_class_the_first_likely_draw_is_kept_and_else_the_likeliest(seed, draws, rivals, accept):
    candidates, text, others = units(7, draws, 3, seed=seed), units(7, 3, seed=1), units(rivals, 3, seed=2)
    text[:4] = others[torch.arange(4) % rivals]  # captions of classes, which have a rival less
    kept = fitted(others)(candidates, text, accept)
    for row in range(7):
        cosines = [np.dot(other, text[row].tolist()) for other in others.tolist()]
        near = max(SAME, max(cosines) - 1e-4)
        wrong = [other for other, cosine in zip(others.tolist(), cosines, strict=True) if cosine <= near]
        likely = []
        for draw in candidates[row].tolist():
            own = math.exp(4 * np.dot(draw, text[row].tolist()))
            likely.append(own / (own + sum(math.exp(4 * np.dot(draw, other)) for other in wrong)))
        enough = [i for i, value in enumerate(likely) if value >= accept and len(wrong) < rivals]
        if all(abs(value - accept) > 1e-5 for value in likely) and len({round(v, 5) for v in likely}) == draws:
            assert kept[row] == (enough[0] if enough else max(range(draws), key=likely.__getitem__))


def test_an_unusual_draw_stays_where_the_closest_would_replace_it():
    text, rival = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    unusual, typical = F.normalize(torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.1]]), dim=-1)
    other = torch.tensor([0.3, 0.9, 0.0])
    candidates = torch.stack([other, unusual, typical])[None]
    classes = fitted(torch.cat([rival, text]))
    assert classes(candidates, text, 0.75).tolist() == [1]
    assert classes(candidates, text, 1.0).tolist() == [2]
    assert classes(candidates, text, 0.0).tolist() == [0]
    assert fitted(rival)(candidates, text, 0.75).tolist() == [2]  # a caption of no class
    assert Reranker(3, 0)(candidates, text, 0.75).tolist() == [2]


@pytest.mark.parametrize("more", [2, 5])
def test_more_draws_change_no_sample_that_was_accepted(more):
    candidates, rivals, which = units(200, 6, 4, seed=0), units(3, 4, seed=2), torch.arange(200) % 3
    few, many = (fitted(rivals)(candidates[:, :count], rivals[which], 0.5) for count in (more - 1, more + 1))
    likely = (4 * candidates @ rivals.T).softmax(dim=2)[torch.arange(200), :, which]  # (200, 6)
    accepted = (likely[:, : more - 1] >= 0.5).any(dim=1)
    assert 20 < accepted.sum() < 200
    assert torch.equal(few[accepted], many[accepted])


def test_the_likeliest_is_found_where_all_are_certain():
    """At CLIP's largest scale probabilities of float32 round to one."""
    candidates, text, rivals = units(300, 16, 64, seed=0), units(300, 64, seed=1), units(10, 64, seed=2)
    candidates = F.normalize(candidates + 3 * text[:, None], dim=-1)
    kept = fitted(rivals, 100.0)(candidates, text, 1.0)
    wide = candidates.double()
    own, others = torch.einsum("nkd,nd->nk", wide, text.double()), wide @ rivals.double().T
    likely = (100 * torch.cat([own[..., None], others], 2)).softmax(2)[..., 0]
    assert (likely > 1 - 1e-9).float().mean() > 0.5
    assert torch.equal(kept, (100 * own - (100 * others).logsumexp(2)).argmax(dim=1))


def test_a_class_stays_a_rival_however_close_its_caption():
    text = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.2, 0.0]]), dim=-1)  # cosine 0.98
    candidates = F.normalize(torch.tensor([[0.9, 0.5, 0.0], [1.0, -0.5, 0.0]]), dim=-1)[None]
    assert fitted(text, 30.0)(candidates, text[:1], 0.6).tolist() == [1]
    assert fitted(text, 30.0)(candidates, text[1:], 0.6).tolist() == [0]
