"""The candidate that is kept, beside the same rule followed by hand for one caption at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data.fashion_mnist_captions import PLAIN_CAPTIONS
from unclip.prior.reranking import SAME_MEANING, Reranker

TEN = list(PLAIN_CAPTIONS)
QUICK = settings(deadline=None, max_examples=60, derandomize=True)


def units(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def fitted(class_embeddings: torch.Tensor, scale: float = 4.0) -> Reranker:
    reranker = Reranker(class_embeddings.shape[1], len(class_embeddings))
    reranker.fit(class_embeddings, scale)
    return reranker


@QUICK
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6), st.floats(0, 1))
def test_a_class_keeps_its_first_likely_candidate_and_else_the_likeliest(seed, num_candidates, num_classes, threshold):
    candidates, text, classes = (
        units(7, num_candidates, 3, seed=seed),
        units(7, 3, seed=1),
        units(num_classes, 3, seed=2),
    )
    text[:4] = classes[torch.arange(4) % num_classes]  # captions of classes, which have a competitor less
    chosen = fitted(classes)(candidates, text, threshold)
    for row in range(7):
        cosines = [np.dot(other, text[row].tolist()) for other in classes.tolist()]
        near = max(SAME_MEANING, max(cosines) - 1e-4)
        competitors = [other for other, cosine in zip(classes.tolist(), cosines, strict=True) if cosine <= near]
        probabilities = []
        for candidate in candidates[row].tolist():
            odds = math.exp(4 * np.dot(candidate, text[row].tolist()))
            against = sum(math.exp(4 * np.dot(candidate, other)) for other in competitors)
            probabilities.append(odds / (odds + against))
        is_class = len(competitors) < num_classes
        passing = [i for i, value in enumerate(probabilities) if value >= threshold and is_class]
        likeliest = max(range(num_candidates), key=probabilities.__getitem__)
        is_clear = all(abs(value - threshold) > 1e-5 for value in probabilities)
        if is_clear and len({round(value, 5) for value in probabilities}) == num_candidates:
            assert chosen[row] == (passing[0] if passing else likeliest)


def test_an_unusual_candidate_stays_where_the_closest_would_replace_it():
    text, competitor = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    unusual, typical = F.normalize(torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.1]]), dim=-1)
    wrong = torch.tensor([0.3, 0.9, 0.0])
    candidates = torch.stack([wrong, unusual, typical])[None]
    classes = fitted(torch.cat([competitor, text]))
    assert classes(candidates, text, 0.75).tolist() == [1]
    assert classes(candidates, text, 1.0).tolist() == [2]
    assert classes(candidates, text, 0.0).tolist() == [0]
    assert fitted(competitor)(candidates, text, 0.75).tolist() == [2]  # a caption of no class
    assert Reranker(3, 0)(candidates, text, 0.75).tolist() == [2]


@pytest.mark.parametrize("more", [2, 5])
def test_more_candidates_change_no_sample_that_was_accepted(more):
    candidates, classes, which = units(200, 6, 4, seed=0), units(3, 4, seed=2), torch.arange(200) % 3
    few, many = (fitted(classes)(candidates[:, :count], classes[which], 0.5) for count in (more - 1, more + 1))
    likely = (4 * candidates @ classes.T).softmax(dim=2)[torch.arange(200), :, which]  # (200, 6)
    accepted = (likely[:, : more - 1] >= 0.5).any(dim=1)
    assert 20 < accepted.sum() < 200
    assert torch.equal(few[accepted], many[accepted])


def test_the_likeliest_is_chosen_where_all_are_certain():
    """At CLIP's largest scale probabilities of float32 round to one."""
    candidates, text, classes = units(300, 16, 64, seed=0), units(300, 64, seed=1), units(10, 64, seed=2)
    candidates = F.normalize(candidates + 3 * text[:, None], dim=-1)
    chosen = fitted(classes, 100.0)(candidates, text, 1.0)
    wide = candidates.double()
    cosines, competitors = torch.einsum("nkd,nd->nk", wide, text.double()), wide @ classes.double().T
    likely = (100 * torch.cat([cosines[..., None], competitors], 2)).softmax(2)[..., 0]
    assert (likely > 1 - 1e-9).float().mean() > 0.5
    assert torch.equal(chosen, (100 * cosines - (100 * competitors).logsumexp(2)).argmax(dim=1))


def test_a_class_stays_a_competitor_however_close_its_caption():
    text = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.2, 0.0]]), dim=-1)  # cosine 0.98
    candidates = F.normalize(torch.tensor([[0.9, 0.5, 0.0], [1.0, -0.5, 0.0]]), dim=-1)[None]
    assert fitted(text, 30.0)(candidates, text[:1], 0.6).tolist() == [1]
    assert fitted(text, 30.0)(candidates, text[1:], 0.6).tolist() == [0]


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_where_the_first_is_kept_in_any_case_is_known_before_candidates_are_drawn(threshold):
    classes = units(3, 4, seed=0)
    text = torch.cat([classes, units(3, 4, seed=1)])
    empty = torch.tensor([False, False, False, False, False, True])
    reranker = fitted(classes)
    keeps_first = reranker.keeps_first(text, empty, threshold)
    assert keeps_first.tolist() == [threshold == 0] * 3 + [False, False, True]
    assert fitted(classes[:0]).keeps_first(text, empty, threshold).tolist() == empty.tolist()
    candidates = units(5 * 6, 4, seed=2)
    kept = reranker.keep(candidates, text, empty, threshold)
    assert torch.equal(kept[keeps_first], candidates[:6][keeps_first])


@pytest.mark.parametrize(
    ("captions", "threshold", "candidates"),
    [(TEN, 0.0, 1), ("", 0.5, 1), (TEN, 0.5, 3), ([*TEN, "a dark bag"], 0.0, 3)],
)
def test_candidates_that_cannot_be_kept_are_not_drawn(tiny, monkeypatch, captions, threshold, candidates):
    drawn = []
    draw_embeddings = type(tiny.prior).draw_embeddings

    def count_candidates(prior, text, seeds, settings):
        drawn.append(settings.num_candidates)
        return draw_embeddings(prior, text, seeds, settings)

    monkeypatch.setattr(type(tiny.prior), "draw_embeddings", count_candidates)
    settings = {"prior_steps": 2, "prior_num_candidates": 3, "prior_threshold": threshold}
    embeddings = tiny.embed(captions, **settings)
    assert set(drawn) == {candidates}
    text = tiny.encode_captions(captions)
    sampling = tiny.sampling.override(**settings)
    expected = draw_embeddings(tiny.prior, text, [0] * len(text), sampling.prior)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-5)
