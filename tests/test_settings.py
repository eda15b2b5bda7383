"""Settings of sampling: seeds, names, ranges, and which of option, pipeline and library has the last word."""

from dataclasses import asdict, fields, replace
from typing import get_type_hints

import numpy as np
import pytest
import torch

from unclip.errors import UserError
from unclip.fields import field_docs
from unclip.settings import (
    MAX_SEED,
    SAMPLING_OPTIONS,
    DecoderSettings,
    FastDecoderSettings,
    PriorSettings,
    Sampling,
    SamplingOptions,
    seed_list,
)
from unclip.store.index import read_sampling
from unclip.store.sealed_json import write_record

# Seeds.


@pytest.mark.parametrize(
    "seed", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.int32)]
)
def test_one_seed_of_any_kind_is_counted_on_from(seed):
    assert seed_list(seed, 3) == [3, 4, 5]
    assert all(type(one) is int for one in seed_list(seed, 3))


@pytest.mark.parametrize(
    "seeds",
    [[7, 7, 2], (7, 7, 2), np.array([7, 7, 2]), torch.tensor([7, 7, 2]), [np.int64(7), torch.tensor(7), 2]],
)
def test_several_seeds_of_any_kind_are_taken_as_they_are(seeds):
    assert seed_list(seeds, 3) == [7, 7, 2]
    assert all(type(one) is int for one in seed_list(seeds, 3))
    with pytest.raises(UserError, match="3 seeds cannot go with 4 images"):
        seed_list(seeds, 4)


def test_a_list_of_one_seed_is_not_one_seed():
    assert seed_list(np.array([5]), 1) == seed_list(range(5, 6), 1) == [5]
    with pytest.raises(UserError, match="1 seed cannot go with 2 images"):
        seed_list([5], 2)


@pytest.mark.parametrize(
    "seed", [1.0, "3", None, np.float32(3), [1.5, 2], np.zeros((2, 2)), np.zeros((2, 2), int), torch.zeros(2), {"a": 1}]
)
def test_what_is_no_seed_is_refused_in_one_line(seed):
    with pytest.raises(UserError, match="seed must be an integer or a list of them, not") as caught:
        seed_list(seed, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, np.int64(-1), 2**63 - 1, 2**63, [0, -5], [0, 2**63]])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(UserError, match=r"seed must not be negative or reach 2\*\*63"):
        seed_list(seed, 2)
    assert seed_list(MAX_SEED - 2, 2)[-1] == MAX_SEED - 1


# Names.


def test_an_override_changes_what_it_names_and_nothing_else():
    own = Sampling(PriorSettings(steps=3), DecoderSettings(guidance=4.0), batch_size=5)
    changed = own.override(steps=7, prior_guidance=2.0, prior_num_candidates=1, eta=0.5, sampler="ddim")
    assert changed.prior == PriorSettings(steps=3, guidance=2.0, num_candidates=1)
    assert changed.decoder == DecoderSettings(steps=7, guidance=4.0, sampler="ddim", eta=0.5)
    assert changed.batch_size == 5
    assert own.override() == own


def test_every_setting_has_an_option_and_every_option_a_setting():
    """Each option, given a value of its own, changes one field: none is shared, and none is left without an option."""
    own = Sampling(decoder=DecoderSettings(sampler="ddim"))
    named = {
        "guidance_interval": (0.1, 0.2),
        "sampler": "ddpm",
        "spacing": "even",
        "prior_guidance": 3,
        "prior_spacing": "karras",
        "num_candidates": 2,
        "prior_temperature": 2,
        "prior_top_share": 0.5,
        "fast_num_candidates": 2,
        "fast_levels": (1.0, 0.2),
        "upscale": "none",
        "upscale_tile": 64,
    }
    values = dict.fromkeys(SAMPLING_OPTIONS, 1) | named
    changed = []
    for name, value in values.items():
        after = flat(asdict(own.override(**{name: value})))
        changed += [key for key, before in flat(asdict(own)).items() if after[key] != before]
    assert sorted(changed) == sorted(flat(asdict(own)))


def test_options_have_the_types_bounds_and_help_of_the_settings_they_stand_for():
    options = {item.name: item for item in fields(SamplingOptions)}
    docs = field_docs(SamplingOptions)
    for owner, names in ((PriorSettings, "prior_{}"), (DecoderSettings, "{}")):
        for item in fields(owner):
            option = options[names.format(item.name)]
            assert (option.type, option.default) == (get_type_hints(owner)[item.name], item.default)
            assert {**option.metadata, "help": None} == {**item.metadata, "help": None}
            assert docs[option.name] == field_docs(owner)[item.name] != ""
    assert docs["batch_size"].startswith("Images drawn at once")


def flat(tree: dict, prefix: str = "") -> dict:
    parts = (flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v} for k, v in tree.items())
    return {key: value for part in parts for key, value in part.items()}


def test_an_unknown_setting_is_refused_with_the_names_that_there_are():
    with pytest.raises(UserError, match=r"there is no setting 'guidence'; choose from steps, guidance, .*, batch_size"):
        Sampling().override(guidence=3.0)


def test_another_sampler_leaves_behind_what_the_pipeline_s_own_read():
    own = Sampling(decoder=DecoderSettings(sampler="ddim", eta=0.5))
    assert own.override(sampler="dpmpp").decoder == DecoderSettings(sampler="dpmpp")
    assert own.override(sampler="ddim").decoder.eta == own.override(steps=3).decoder.eta == 0.5
    with pytest.raises(UserError, match=r"eta must be 0 for the ddpm sampler \(only ddim reads it\), not 0\.5"):
        own.override(sampler="ddpm", eta=0.5)


def test_options_of_a_pipeline_are_its_own_settings_and_only_changes_override_them():
    own = Sampling(PriorSettings(steps=7), DecoderSettings(sampler="ddim", eta=0.5), batch_size=9)
    options = SamplingOptions.of(own)
    assert options.changed(own) == {}
    assert own.override(**options.changed(Sampling())) == Sampling().override(**options.changed(Sampling())) == own
    assert replace(options, guidance=1.0, eta=0.0).changed(own) == {"guidance": 1.0, "eta": 0.0}  # nought counts too
    assert own.override(**replace(options, sampler="ddpm").changed(own)).decoder.eta == 0
    assert SamplingOptions.of(Sampling()) == SamplingOptions()
    assert tuple(item.name for item in fields(SamplingOptions)) == ("style", *SAMPLING_OPTIONS)


def test_faithful_guides_and_picks_nothing_but_what_is_named_beats_the_style():
    own = Sampling(
        PriorSettings(steps=7, guidance=2.0, num_candidates=4), DecoderSettings(guidance=3.0, num_candidates=2)
    )
    faithful = own.override(style="faithful")
    prior = PriorSettings(steps=7, guidance=1.0, num_candidates=1)
    assert faithful == Sampling(prior, DecoderSettings(guidance=1.0), FastDecoderSettings(steps=0))
    assert own.override(style="clear") == own
    assert own.override(style="faithful", guidance=3.0).decoder.guidance == 3.0
    options = replace(
        SamplingOptions.of(own, "faithful"), prior_num_candidates=4
    )  # as on a command line that names both
    assert own.override(**options.changed(own)) == replace(faithful, prior=replace(faithful.prior, num_candidates=4))
    for style in ("fancy", None, ["faithful"]):
        with pytest.raises(UserError, match=r"there is no style .*; choose from clear, faithful"):
            own.override(style=style)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps must be from 1 to 10000, not 0"),
        ({"prior_steps": 0}, "prior_steps must be from 1 to 10000, not 0"),
        ({"prior_num_candidates": 0}, "prior_num_candidates must be from 1 to 256, not 0"),
        ({"batch_size": 0}, "batch_size must be from 1 to 4096, not 0"),
        ({"guidance": 101.0}, "guidance must be from 0 to 100, not 101"),
        ({"prior_guidance": float("nan")}, "prior_guidance must be from 0 to 100, not nan"),
        ({"guidance_interval": (0.6, 0.4)}, "guidance_interval must be two ascending numbers in 0 .. 1"),
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim, dpmpp, consistency, not 'euler'"),
        ({"sampler": "ddim", "eta": 1.5}, "eta must be from 0 to 1, not 1.5"),
        ({"eta": 0.5}, "eta must be 0 for the dpmpp sampler (only ddim reads it), not 0.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_their_names(settings, words):
    with pytest.raises(UserError) as caught:
        Sampling().override(**settings)
    assert words in str(caught.value)


# The pipeline's own, in model_index.json.


def write(folder, sampling) -> None:
    write_record(folder / "model_index.json", {"format": 3, "stages": {}, "sampling": sampling})


def test_what_a_pipeline_does_not_say_is_the_library_s(tmp_path):
    assert read_sampling(tmp_path) == Sampling()  # it has no index yet
    write(tmp_path, {})
    assert read_sampling(tmp_path) == Sampling()
    write(
        tmp_path,
        {"prior": {"num_candidates": 5}, "decoder": {"guidance_interval": [0.0, 1.0], "sampler": "ddim"}},
    )
    own = Sampling(PriorSettings(num_candidates=5), DecoderSettings(guidance_interval=(0.0, 1.0), sampler="ddim"))
    assert read_sampling(tmp_path) == own


@pytest.mark.parametrize(
    "sampling",
    [
        3, [], "dpmpp", None, {"prior": 3}, {"decoder": [1]}, {"prior": None}, {"batch_size": 3},
        {"sharpener": {"steps": 3}}, {"prior": {"wings": 2}}, {"decoder": {"prior_steps": 2}},
        {"prior": {"steps": 0}}, {"prior": {"steps": "many"}}, {"prior": {"steps": 2.5}}, {"prior": {"steps": None}},
        {"prior": {"guidance": [1, 2]}}, {"prior": {"num_candidates": {}}}, {"prior": {"num_candidates": True}},
        {"decoder": {"sampler": "euler"}}, {"decoder": {"sampler": []}}, {"decoder": {"sampler": {}}},
        {"decoder": {"guidance_interval": 0.5}}, {"decoder": {"guidance_interval": [0.1]}},
        {"decoder": {"guidance_interval": "ab"}}, {"decoder": {"guidance_interval": [0.1, None]}},
        {"decoder": {"guidance": "strong"}}, {"decoder": {"guidance": 1000}}, {"decoder": {"eta": 0.5}},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused_in_one_line_that_names_the_file(sampling, tmp_path):
    write(tmp_path, sampling)
    with pytest.raises(UserError, match=r"model_index\.json") as caught:
        read_sampling(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3"])
def test_an_index_that_is_none_is_refused(content, tmp_path):
    (tmp_path / "model_index.json").write_bytes(content)
    with pytest.raises(UserError, match=r"model_index\.json"):
        read_sampling(tmp_path)
