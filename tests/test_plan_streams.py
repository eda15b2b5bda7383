"""The plan of reading a stream, against closed forms."""

import pytest
from planned import budget, options

from stages.plan.loading import PIXEL_BYTES, RATE_64, RATE_256, ROW_BYTES, Embeddings, Reading
from stages.plan.plan_report import plan_parts, stored_bytes


def test_reading_of_a_stream_is_what_its_steps_take():
    prior = budget("tiny", "prior")
    rate = 64 / prior.seconds(prior.best())
    small, large = Reading(prior, 64), Reading(prior, 256)
    assert small.rate == large.rate == pytest.approx(rate)
    assert small.cores == pytest.approx(rate / RATE_64)
    assert large.cores == pytest.approx(rate / RATE_256)
    assert large.workers - 1 < large.cores <= large.workers
    assert large.network == pytest.approx(rate * (ROW_BYTES + PIXEL_BYTES * 256**2))


@pytest.mark.parametrize(
    ("images", "disk", "choice", "why"),
    [(1000, 1.9e6, "online", "disk"), (1000, 2.1e6, "stored", "more often"), (2870, 1e9, "stored", "more often"),
     (2890, 1e9, "online", "fewer images")],
)  # fmt: skip
def test_plan_says_which_embeddings_are_cheaper(images, disk, choice, why):
    """The prior and the decoder see 60 x 64 and 60 x 32 images; all are stored twice, at the sizes of both."""
    budgets = [budget("tiny", "prior"), budget("tiny", "decoder")]
    embeddings = Embeddings(images=images, row=1000, operations=2e9, sets=2)
    rate = 0.7 * 1.5e11
    assert embeddings.stored_bytes == 2 * images * 1000
    assert embeddings.stored_seconds(budgets[0]) == pytest.approx(2 * images * 2e9 / rate)
    assert embeddings.online_seconds(budgets) == pytest.approx(60 * (64 + 32) * 2e9 / rate)
    found, reason = embeddings.cheaper(budgets, disk)
    assert (found, why in reason) == (choice, True)


def test_images_are_embedded_anew_for_each_size_at_which_they_are_read():
    stored = stored_bytes(plan_parts(options("paper", also=("upsampler",))), 77)
    assert [part for part, of_part in stored.items() if of_part.cache] == ["prior", "decoder"]
    assert stored["prior"] == stored["decoder"]
