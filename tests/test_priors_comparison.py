"""The comparison of priors: its measures, its table, and that it goes on where it was interrupted."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from runs import CPU
from three_stages import decoder_stage, make_inputs

from data.dataset import ListedCaptions
from stages import loop
from stages.identity import flatten_settings
from stages.prior_base import BasePriorStage
from stages.priors import comparison
from stages.priors.comparison import Comparison, ComparisonOptions, Pairs, build_stage, compare_priors
from stages.priors.embedding_measures import energy_distance, measure_draws
from stages.priors.rows import ABLATIONS, ALL_ROWS, ROWS
from stages.priors.table import cell, tables
from unclip.decoder.text_decoder import TextDecoder
from unclip.errors import UserError
from unclip.prior.principal_components import PrincipalComponents
from unclip.settings import Sampling
from unclip.store.manifest import Manifest
from unclip.store.parts import save_part


def clouds(count: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors about the centre of each of two captions, and the captions' numbers."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(count) % 2
    noise = torch.randn(count, 6, generator=generator) * torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    return F.normalize(torch.eye(6)[groups] * 3 + spread * noise, dim=1), groups


def measured(spread: float) -> dict:
    real, real_groups = clouds(1200, 0.2, seed=0)
    draws, groups = clouds(1200, spread, seed=1)
    components = PrincipalComponents(6)
    components.fit(real, 1.0)
    return measure_draws(draws, real, groups, real_groups, components, real.std(dim=0))


def test_draws_of_the_real_distribution_are_told_from_too_narrow_and_too_wide_ones():
    right, narrow, wide = measured(0.2), measured(0.05), measured(0.5)
    assert right["frechet"] < 0.05 < min(narrow["frechet"], wide["frechet"])
    assert abs(right["energy"]) < 0.02 < min(narrow["energy"], wide["energy"])
    assert narrow["central"] < 0.6 < right["central"] < 0.9 < wide["central"]
    assert right["central"] == pytest.approx(0.8, abs=0.03)
    assert right["quantiles"] == pytest.approx([0.1] * 10, abs=0.03)
    assert narrow["variance_1_to_8"] < right["variance_1_to_8"] < wide["variance_1_to_8"]
    assert right["variance_1_to_8"] == pytest.approx(1, abs=0.05)
    assert narrow["recall"] < 0.3 < right["recall"]
    assert wide["precision"] < right["precision"]
    assert math.isnan(right["variance_17_to_32"])


def test_captions_with_few_images_have_no_distance_of_their_own():
    real, groups = clouds(30, 0.2, seed=0)
    components = PrincipalComponents(6)
    components.fit(real, 1.0)
    figures = measure_draws(real, real, groups, groups, components, real.std(dim=0))
    assert math.isnan(figures["energy"])
    assert math.isnan(figures["central"])


def test_energy_distance_is_the_closed_form_for_gaussians_on_a_line():
    """E|x - y| of N(d, 2) is 2 / sqrt(pi) exp(-d^2 / 4) + d erf(d / 2)."""
    a, b = torch.randn(2, 3000, 1, generator=torch.Generator().manual_seed(0))
    shift = 1.5
    between = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    assert energy_distance(a, b + shift) == pytest.approx(2 * between - 4 / math.sqrt(math.pi), abs=0.05)
    assert energy_distance(a, b) == pytest.approx(0, abs=0.01)


def test_cells_have_the_mean_and_students_interval():
    assert cell([None, math.nan]) == "-"
    assert cell([0.25, None]) == "0.25"
    assert cell([1.0, 2.0, 3.0]) == f"2 ± {4.303 / math.sqrt(3):.3g}"
    text = tables({"mlp-0": {"frechet": 2.0}, "mlp-1": {"frechet": 2.0}, "real-0": {"frechet": 0.5}})
    assert "Images by one decoder" not in text, "none has its figures"
    assert text.index("| real training images | 0.5 |") < text.index("| diffusion, residual MLP | 2 |")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("cache"))


def test_pairs_are_chosen_so_that_all_of_them_are_equally_likely(inputs):
    """Images with two captions are chosen twice as often as those with one."""
    data = replace(inputs.train.data)
    data.captioner = ListedCaptions(["a", "b"], torch.tensor([[0, 1]] * 40), torch.arange(40) % 2 + 1)
    pairs = Pairs.choose(replace(inputs.train, data=data), 100)
    rows = (pairs.embeddings[:, None] == inputs.train.embeddings).all(dim=2).nonzero()[:, 1]
    assert set(rows[rows % 2 == 1].tolist()) == set(range(1, 40, 2))
    assert 4 <= (rows % 2 == 0).sum() <= 16


CHANGED = {
    "straight_x0": {"model.diffusion.process"},
    "v": {"model.diffusion.prediction"},
    "uniform": {"log_sigma"},
    "by_coordinate": {"whitening"},
    "whitened": {"whitening"},
    "whole_captions": {"hide_tokens"},
    "no_regression": set(),
    "larger": {"model.network.width", "model.network.layers", "model.network.heads"},
}


MANIFESTS = {"clip": SimpleNamespace(sha256="c1"), "decoder": SimpleNamespace(sha256="d1")}


@pytest.fixture
def options(inputs, tmp_path, monkeypatch) -> ComparisonOptions:
    """Two rows of tiny trainings, on made-up data and without images."""
    options = ComparisonOptions(
        rows=("autoregressive", "text_embedding"), preset="tiny", seconds=0.1, seeds=1, embeddings=50, out=tmp_path
    )
    monkeypatch.setattr(comparison, "TIMED_STEPS", 1)
    monkeypatch.setattr(comparison, "VARIANTS", {"top 5%": {"top_share": 0.05}})
    monkeypatch.setattr(BasePriorStage, "preview", lambda *_: Image.new("L", (4, 4)))
    monkeypatch.setattr(comparison, "seconds_per_step", lambda *_: 0.02)
    monkeypatch.setattr(comparison, "measure_with_decoder", lambda *_: {"right": 0.5})
    pipe = SimpleNamespace(decoder=None, sampling=Sampling())
    context = SimpleNamespace(embedded_test=inputs.validation, pipe=pipe)
    monkeypatch.setattr(comparison, "prepare", lambda given: Comparison(given, CPU, tmp_path, inputs, context))
    monkeypatch.setattr(comparison, "read_manifests", lambda _: MANIFESTS)
    return options


def test_a_comparison_trains_and_measures_every_row_once(options, monkeypatch, capsys):
    text = compare_priors(options)
    assert text in capsys.readouterr().out
    for label in ("real training images", "autoregressive", "text embedding as it is", "top 5%"):
        assert f"| {label} |" in text
    assert (options.out / "priors.md").read_text() == text
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    assert compare_priors(options) == text


def test_figures_of_other_settings_are_not_mixed(options, monkeypatch):
    some = replace(options, rows=("text_embedding",))
    assert "| autoregressive |" not in compare_priors(some)
    text = compare_priors(options)
    assert "| autoregressive |" in text, "added"
    for change in ({"samples": 20}, {"embeddings": 60}, {"seconds": 1.0}, {"preset": "quick"}):
        [(name, value)] = change.items()
        with pytest.raises(UserError, match=f"{name} = {getattr(options, name)}, not {value}; choose another --out"):
            compare_priors(replace(options, **change))
    with pytest.raises(UserError, match=r"judge\.steps = \d+, not 7; choose"):
        compare_priors(replace(options, judge=replace(options.judge, steps=7)))
    assert compare_priors(some) == text
    for part in ("clip", "decoder"):
        others = MANIFESTS | {part: SimpleNamespace(sha256="other")}
        monkeypatch.setattr(comparison, "read_manifests", lambda _, others=others: others)
        with pytest.raises(UserError, match=rf"{part} = {MANIFESTS[part].sha256}\.\., not other"):
            compare_priors(options)
    monkeypatch.setattr(comparison, "read_manifests", lambda _: MANIFESTS)
    prepared = comparison.prepare(options)
    sampling = prepared.context.pipe.sampling
    prepared.context.pipe.sampling = sampling.override(prior_redraws=5)  # not read here
    monkeypatch.setattr(comparison, "prepare", lambda _: prepared)
    assert compare_priors(options) == text
    prepared.context.pipe.sampling = sampling.override(guidance=7.0)
    with pytest.raises(UserError, match=r"sampling\.guidance = 2\.5, not 7\.0"):
        compare_priors(options)
    (options.out / "settings.json").unlink()
    with pytest.raises(UserError, match="holds a comparison by an earlier version"):
        compare_priors(options)


def test_the_command_line_names_every_row():
    assert get_args(comparison.RowName) == tuple(ALL_ROWS)


def test_each_ablation_changes_one_thing_of_the_diffusion_prior(inputs, options):
    context = SimpleNamespace(pipe=SimpleNamespace(decoder=None))
    shared = Comparison(options, CPU, options.out, inputs, context)

    def built(row):
        run, stage = build_stage(shared, row, options.out / "new", 0, 10)
        axes = stage.model.scaler.axes
        assert torch.equal(axes, torch.eye(len(axes))) == (run.whitening is None)
        return flatten_settings(asdict(run)), stage.model.network.regression.weight

    plain, fitted = built(ROWS["diffusion"])
    assert fitted.any()
    for name, row in ABLATIONS.items():
        changed, weight = built(row)
        different = {option for option in plain if changed[option] != plain[option]}
        assert {name: different} == {name: CHANGED[name]}
        if changed["whitening"] == plain["whitening"]:  # the same coordinates
            assert torch.equal(weight, torch.zeros_like(weight) if name == "no_regression" else fitted)


def test_the_decoder_on_text_goes_on_from_the_pipeline_s_decoder(inputs, options):
    decoder = decoder_stage(inputs).model
    torch.nn.init.normal_(decoder.network.image_condition.null)
    save_part(options.out / "decoder", decoder, Manifest("decoder", parents=inputs.parents))
    context = SimpleNamespace(pipe=SimpleNamespace(decoder=decoder))
    _, stage = build_stage(
        Comparison(options, CPU, options.out, inputs, context), ROWS["text_decoder"], options.out / "new", 0, 10
    )
    assert isinstance(stage.model, TextDecoder)
    condition = stage.model.network.image_condition
    assert torch.equal(condition.null, decoder.network.image_condition.null)
    torch.testing.assert_close(condition.scaler.mean, inputs.train.text_embeddings.mean(dim=0))
