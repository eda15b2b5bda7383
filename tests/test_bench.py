"""The benchmark on tiny shapes: its counts, checks and files. No other project is needed."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from stages.bench import bench, comparisons, contender, our_code, plain_code
from stages.bench.contender import Contender, sampling_contender, training_contender
from stages.bench.table import Row, markdown, quartiles, speed_ratio
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
    monkeypatch.setattr(contender, "MATRIX_SIZE", 32)


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
    clip = randomised(our_code.make_clip(inputs))
    plain = plain_code.with_plain_attention(clip)
    images = Preprocess(8, 1)(inputs.pixels)
    close(plain_code.encode_image(plain, images), clip.encode_image(images))
    text, encodings = clip.encode_text(inputs.token_ids)
    captions = plain_code.encode_text(plain, inputs.token_ids)
    close(captions.embedding, text)
    close(captions.tokens, encodings)
    close(captions.embedding, clip.embed_text(inputs.token_ids))


def test_plain_prior_gives_the_same_prediction(inputs):
    prior = randomised(our_code.make_prior(inputs))
    text = inputs.text_features(6, 10)
    levels = our_code.noise_levels(inputs.t)
    prefix = prior.prefix(text)
    residual = inputs.noise - levels.alpha[:, None] * prefix.centre
    network = plain_code.with_plain_attention(prior.network)
    plain = plain_code.predict_embeddings(network, inputs.noise, inputs.t, text)
    close(plain, prefix.centre + prior.network(residual, levels.time, prefix))
    from_text = prior.network.forward_with_text(
        residual, levels.time, text.embedding, text.tokens, text.mask, text.empty
    )
    close(plain, prefix.centre + from_text)


def test_plain_decoder_gives_the_same_prediction(inputs):
    decoder = randomised(our_code.make_decoder(inputs))
    batch = our_code.decoder_batch(inputs, 10)
    condition = decoder.condition(batch.embeddings, batch.drop, batch.text)
    network = plain_code.with_plain_attention(decoder.network)
    steps = inputs.t[: len(batch)]
    plain = plain_code.predict_pixels(network, batch.noise, steps, batch.embeddings, batch.text)
    close(plain, decoder.network(batch.noise, batch.levels.time, condition))


def test_captions_are_as_the_trainers_draw_them(inputs):
    assert inputs.token_ids.shape[0] == len(inputs.caption_rows.unique()) <= SHAPES.batch
    assert ((inputs.token_ids == inputs.end_id).sum(dim=1) == 1).all()
    padded = plain_code.padded_captions(inputs, SHAPES.batch)
    assert padded.shape == (SHAPES.batch, SHAPES.context)
    assert torch.equal(padded[:, : inputs.token_ids.shape[1]], inputs.token_ids[inputs.caption_rows])


# Measurements.


def test_operations_of_a_training_step_are_counted():
    """A linear map takes 2 B N M operations forward, and as many backward, as its input needs no gradient here."""
    model, x = nn.Linear(6, 5, bias=False), torch.randn(4, 6)
    trainer = training_contender("ours", model, lambda: model(x).square().mean(), images=4)
    trainer.warm_up()
    assert trainer.operations == 2 * (2 * 6 * 5)
    assert trainer.parameters == 30
    assert trainer.peak_bytes is None or trainer.peak_bytes >= 4 * 30 * 4  # weights, average, two moments
    for _ in range(3):
        trainer.time_round()
    assert trainer.losses == sorted(trainer.losses, reverse=True)
    assert len(trainer.losses) == 5
    trainer.check_losses()


def test_what_is_extrapolated_counts_as_the_whole(monkeypatch):
    x = torch.randn(8, 8)
    whole, part = (
        sampling_contender("x", [nn.Linear(1, 1)], lambda: x @ x, images=2, fraction=share) for share in (1.0, 0.25)
    )
    for each in (whole, part):
        each.warm_up()
    assert part.operations == 4 * whole.operations == 4 * (2 * 8**3) / 2
    ticks = iter([0.0, 1.0, 1.0, 3.0])
    with monkeypatch.context() as patch:
        patch.setattr(contender.time, "perf_counter", lambda: next(ticks))
        part.time_round()
    assert part.seconds == [8.0]
    assert part.rate == 2 / 8
    assert part.matrix_shares == [pytest.approx(part.operations * 2 / 8 / (2 * 32**3))]


def test_ratios_are_taken_round_by_round():
    ours, other = (
        Contender("x", lambda: None, 1, 1, seconds=seconds) for seconds in ([1.0, 9.0, 2.0], [2.0, 18.0, 6.0])
    )
    assert speed_ratio(ours, other) == quartiles([2.0, 2.0, 3.0])
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 3.0, 4.0]


# Refusals.


def test_a_training_that_does_not_lower_its_loss_is_refused():
    row = Row("work", Contender("ours", lambda: None, 1, 100, losses=[2.0, 2.5]))
    with pytest.raises(UserError, match=r"took the loss from 2 to 2\.5"):
        row.check_fairness()


def test_unequal_models_are_refused():
    ours, other = (Contender(name, lambda: None, 1, parameters) for name, parameters in (("ours", 100), ("b", 106)))
    with pytest.raises(UserError, match="b has 106 parameters and ours 100, which differ by more than 5%"):
        Row("work", ours, {"b": other}).check_fairness()
    Row("work", ours, {"b": replace(other, parameters=104), comparisons.PLAIN: other}).check_fairness()


# The whole.


def test_without_the_other_projects_it_names_them_as_missing(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(comparisons, "MODULES", dict.fromkeys(comparisons.MODULES, "not_a_module"))
    printed = bench.run_bench(tmp_path, inputs, rounds=1)
    table = (tmp_path / "bench.md").read_text()
    assert printed.startswith(table)
    for name in comparisons.MODULES:
        assert f"| {name} | not installed |" in table
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    measured = [row for row in rows if "parameters" in row]
    assert {row["code"] for row in measured} == {"ours", comparisons.PLAIN}
    assert len([row for row in measured if row["code"] == "ours"]) == 9
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
    monkeypatch.setattr(bench, "run_bench", lambda out, shapes, rounds: seen.update(shapes=shapes, rounds=rounds))
    monkeypatch.setattr(bench, "Inputs", lambda shapes, device: shapes)
    bench.main(["--quick"])
    assert seen["rounds"] == 3
    assert seen["shapes"].batch < Shapes().batch
