"""The benchmark on tiny shapes, ours alone: what it counts, checks and writes. No other project is needed."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from stages.bench import bench, contender, naive, ours, works
from stages.bench.contender import Contender, sampling, training
from stages.bench.table import Row, markdown, quartiles, ratio
from stages.bench.workload import Inputs, Shapes
from unclip.clip import Preprocess
from unclip.errors import UserError

SHAPES = Shapes(
    image_size=8, patch_size=4, width=32, layers=2, heads=2, channels=8, multipliers=(1, 2), blocks=1, batch=6,
    decoder_batch=2, samples=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs(SHAPES)


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    monkeypatch.setattr(contender, "MATRIX", 32)


def randomised(model: nn.Module) -> nn.Module:
    """Nothing that matters hides behind a zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


# The plain code computes what ours does: it is a reference for every fast path at once.


def test_plain_clip_gives_the_same_embeddings_and_encodings(inputs):
    clip = randomised(ours.make_clip(inputs))
    plain, images = naive.plainly(clip), Preprocess(8, 1)(inputs.pixels)
    close(naive.encode_image(plain, images), clip.encode_image(images))
    text, encodings = clip.encode_text(inputs.ids)
    captions = naive.encode_text(plain, inputs.ids)
    close(captions.embedding, text)
    close(captions.tokens, encodings)
    close(captions.embedding, clip.embed_text(inputs.ids))


def test_plain_prior_gives_the_same_prediction(inputs):
    prior, captions = randomised(ours.make_prior(inputs)), inputs.captions(6, 10)
    plain = naive.predict(naive.plainly(prior), inputs.noise, inputs.t, captions)
    close(plain, prior(inputs.noise, inputs.t, prior.prefix(captions)))
    close(plain, prior.predict(inputs.noise, inputs.t, captions))


def test_plain_decoder_gives_the_same_prediction(inputs):
    decoder, batch = randomised(ours.make_decoder(inputs)), ours.decoder_batch(inputs, 10)
    condition = decoder.condition(batch.embeddings, batch.captions, batch.drop)
    plain = naive.predict_pixels(naive.plainly(decoder), batch.noise, batch.t, batch.embeddings, batch.captions)
    close(plain, decoder(batch.noise, batch.t, condition))


def test_captions_are_as_the_trainers_draw_them(inputs):
    assert inputs.ids.shape[0] == len(inputs.caption.unique()) <= SHAPES.batch
    assert ((inputs.ids == inputs.end_id).sum(dim=1) == 1).all()
    every = naive.every_caption(inputs, SHAPES.batch)
    assert every.shape == (SHAPES.batch, SHAPES.context)
    assert torch.equal(every[:, : inputs.ids.shape[1]], inputs.ids[inputs.caption])


# What is measured.


def test_operations_of_a_training_step_are_counted():
    """Of a linear map: a product of 2 B N M, and two of as many backward; the input needs no gradient here."""
    model, x = nn.Linear(6, 5, bias=False), torch.randn(4, 6)
    one = training("ours", model, lambda: model(x).square().mean(), images=4)
    one.prepare()
    assert one.operations == 2 * (2 * 6 * 5)
    assert one.parameters == 30
    assert one.memory is None or one.memory >= 4 * 30 * 4  # weights, average, two moments
    for _ in range(3):
        one.time()
    assert one.losses == sorted(one.losses, reverse=True)
    assert len(one.losses) == 5
    one.check()


def test_what_is_extrapolated_counts_as_the_whole():
    x = torch.randn(8, 8)
    whole, part = (sampling("x", [nn.Linear(1, 1)], lambda: x @ x, images=2, part=share) for share in (1.0, 0.25))
    for one in (whole, part):
        one.prepare()
    assert part.operations == 4 * whole.operations == 4 * (2 * 8**3) / 2
    ticks = iter([0.0, 1.0, 1.0, 3.0])
    clock, contender.time.perf_counter = contender.time.perf_counter, lambda: next(ticks)
    try:
        part.time()
    finally:
        contender.time.perf_counter = clock
    assert part.seconds == [8.0]
    assert part.rate == 2 / 8
    assert part.shares == [pytest.approx(part.operations * 2 / 8 / (2 * 32**3))]


def test_ratios_are_taken_round_by_round():
    own, other = (
        Contender("x", lambda: None, 1, 1, seconds=seconds) for seconds in ([1.0, 9.0, 2.0], [2.0, 18.0, 6.0])
    )
    assert ratio(own, other) == quartiles([2.0, 2.0, 3.0])
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 3.0, 4.0]


# What is refused.


def test_a_training_that_does_not_lower_its_loss_is_refused():
    row = Row("work", Contender("ours", lambda: None, 1, 100, losses=[2.0, 2.5]))
    with pytest.raises(UserError, match=r"took the loss from 2 to 2\.5"):
        row.check()


def test_unequal_models_are_refused():
    own, other = (Contender(name, lambda: None, 1, parameters) for name, parameters in (("ours", 100), ("b", 106)))
    with pytest.raises(UserError, match="b has 106 parameters and ours 100, which differ by more than 5%"):
        Row("work", own, {"b": other}).check()
    Row("work", own, {"b": replace(other, parameters=104), works.PLAIN: other}).check()


# The whole.


def test_without_the_other_projects_it_names_them_as_missing(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(works, "MODULES", dict.fromkeys(works.MODULES, "not_a_module"))
    told = bench.bench(tmp_path, inputs, rounds=1)
    table = (tmp_path / "bench.md").read_text()
    assert told.startswith(table)
    for name in works.MODULES:
        assert f"| {name} | not installed |" in table
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    measured = [row for row in rows if "parameters" in row]
    assert {row["code"] for row in measured} == {"ours", works.PLAIN}
    assert len([row for row in measured if row["code"] == "ours"]) == 8
    for row in measured:
        assert row["images_per_second"][1] > 0
        assert row["operations_per_image"] > 0
        assert ("ratio" in row) == (row["code"] != "ours")
        assert row["losses"] is None or row["losses"][1] < row["losses"][0]
    assert markdown(rows) == table


def test_quick_is_an_option_and_others_are_refused(monkeypatch):
    with pytest.raises(UserError, match="--slow"):
        bench.main(["--slow"])
    seen = {}
    monkeypatch.setattr(bench, "bench", lambda out, shapes, rounds: seen.update(shapes=shapes, rounds=rounds))
    monkeypatch.setattr(bench, "Inputs", lambda shapes: shapes)
    bench.main(["--quick"])
    assert seen["rounds"] == 3
    assert seen["shapes"].batch < Shapes().batch
