"""Images of another class than their caption's are drawn anew: the rule on numbers, and in a pipeline."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import BAG, DRESS, FEW, assert_same_images, differ
from small_pipeline import build

from unclip import UnCLIP, drawing
from unclip.clip import TextFeatures
from unclip.redrawing import Drawn, redraw_failed
from unclip.settings import SEED_STEP, PriorSettings, Sampling

PICKY = {"prior_redraws": 3, "prior_image_threshold": 0.7, "prior_num_candidates": 1, **FEW}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10_000), st.integers(0, 4), st.floats(0, 1))
def test_the_first_image_that_passes_is_kept_and_else_the_most_probable_one(seed, redraws, threshold):
    """An image is its own probability here, and its embedding the number of its attempt."""
    table = torch.rand(redraws + 1, 6, generator=torch.Generator().manual_seed(seed))
    calls = []

    def draw(text, seeds: list[int]) -> Drawn:
        attempts = [number // SEED_STEP for number in seeds]
        rows = [number % SEED_STEP for number in seeds]
        calls.append(rows)
        images = table[attempts, rows]
        return Drawn(images[:, None, None, None], torch.tensor(attempts)[:, None], seeds)

    nothing = torch.zeros(6, 1)
    text = TextFeatures(nothing, nothing[:, None], nothing > 0, nothing[:, 0] > 0)
    prior = PriorSettings(redraws=redraws, image_threshold=threshold)
    first = draw(text, list(range(6)))
    kept = redraw_failed(first, text, first.seeds, prior, draw, lambda images, text: images[:, 0, 0, 0])
    for row, column in enumerate(table.T):
        passing = (column >= threshold).nonzero().flatten().tolist()
        attempt = passing[0] if passing else int(column.argmax())
        assert kept.images[row].item() == column[attempt]
        assert kept.embeddings[row].item() == attempt
        assert kept.seeds[row] == row + attempt * SEED_STEP
        drawn = passing[0] + 1 if passing else redraws + 1
        assert sum(row in rows for rows in calls) == drawn, "an image that passed was drawn again"


def test_a_redrawn_image_is_that_of_another_seed(tiny):
    first = tiny([BAG, DRESS], n=8, **PICKY | {"prior_redraws": 0})
    out = tiny([BAG, DRESS], n=8, **PICKY)
    redrawn = [row for row in range(16) if differ(out.images[row], first.images[row])]
    assert 0 < len(redrawn) < 16
    attempts = [
        tiny([BAG, DRESS], seed=[seed + i * SEED_STEP for seed in out.seeds], n=8, **PICKY | {"prior_redraws": 0})
        for i in range(4)
    ]
    for row in redrawn:
        [attempt] = [other for other in attempts if torch.equal(other.noise[row], out.noise[row])]
        assert_same_images(attempt.images[row], out.images[row])
        torch.testing.assert_close(attempt.embeddings[row], out.embeddings[row])
    assert_same_images(tiny.decode(out.embeddings, out.captions, noise=out.noise, **FEW), out.images)


def test_a_redrawn_image_depends_on_its_own_sample_alone_and_is_watched(tiny):
    out = tiny([BAG, DRESS], n=4, seed=2, **PICKY)
    assert_same_images(tiny([BAG, DRESS], n=4, seed=2, batch_size=3, **PICKY).images, out.images)
    moments = []
    watched = tiny([BAG, DRESS], n=4, seed=2, on_step=moments.append, **PICKY)
    assert_same_images(watched.images, out.images)
    assert len(moments) == FEW["steps"]
    assert_same_images(moments[-1].x0, out.images)


@pytest.mark.parametrize("caption", ["a dark bag with a pattern", ""])
def test_a_caption_that_is_no_class_of_its_own_is_drawn_once(caption, tiny):
    assert_same_images(tiny(caption, n=4, **PICKY).images, tiny(caption, n=4, **PICKY | {"prior_redraws": 0}).images)


def test_without_classes_no_image_is_judged(tmp_path, monkeypatch):
    pipe = UnCLIP.from_pretrained(build(tmp_path / "pipeline"))
    once = pipe("a bag", **PICKY | {"prior_redraws": 0})
    monkeypatch.setattr(drawing, "encode_drawn", lambda *_: pytest.fail("an image was embedded"))
    assert_same_images(pipe("a bag", **PICKY).images, once.images)


def test_given_embeddings_are_never_replaced(tiny):
    embeddings = tiny.embed(BAG, n=4, **FEW)
    plain = tiny.decode(embeddings, [BAG] * 4, **FEW)
    assert_same_images(tiny.decode(embeddings, [BAG] * 4, prior_redraws=3, prior_image_threshold=1.0, **FEW), plain)


def test_the_faithful_style_does_not_redraw():
    assert Sampling(PriorSettings(redraws=5)).override("faithful").prior.redraws == 0
