"""Settings of sampling are changed in a trained pipeline of any format, by one file that is replaced as a whole."""

import shutil

import pytest
from conftest import assert_one_error_line, contents, edit
from test_formats import FORMATS, PIPELINES

from unclip import UnCLIP
from unclip.errors import UserError
from unclip.settings import Sampling
from unclip.store.index import read_sampling, write_index
from unclip.store.stored_sampling import write_sampling

SETTINGS = "unclip.cli.settings"


@pytest.fixture(params=FORMATS)
def pipeline(request, tmp_path):
    return shutil.copytree(PIPELINES / f"format-{request.param}", tmp_path / "pipeline")


def test_stored_settings_are_the_pipeline_s_and_nothing_else_changes(pipeline):
    before = contents(pipeline)
    wanted = read_sampling(pipeline).override(steps=7, guidance_interval=(0.1, 0.9), prior_num_candidates=3)
    write_sampling(pipeline, wanted)
    after = contents(pipeline)
    assert {name for name in after if after[name] != before.get(name)} == {"model_index.json"}
    assert read_sampling(pipeline) == wanted
    assert UnCLIP.from_pretrained(pipeline).sampling == wanted


def test_stored_settings_stay_until_the_part_has_others_of_its_own(pipeline):
    chosen = read_sampling(pipeline).override(steps=7, prior_steps=5)
    write_sampling(pipeline, chosen)
    write_index(pipeline)
    assert read_sampling(pipeline) == chosen
    edit(pipeline / "decoder", sampling={"steps": 3})
    write_index(pipeline)
    assert read_sampling(pipeline).decoder.steps == 3
    assert read_sampling(pipeline).prior == chosen.prior


def test_more_steps_than_a_part_has_are_refused(pipeline):
    before = contents(pipeline)
    with pytest.raises(UserError, match=r"prior_steps must be from 1 to \d+, the timesteps of the prior, not 9000"):
        write_sampling(pipeline, Sampling().override(prior_steps=9000))
    assert contents(pipeline) == before


def test_command_shows_settings_and_changes_those_that_are_given(pipeline, script):
    own = read_sampling(pipeline)
    shown = script(SETTINGS, pipeline)
    assert (shown.code, shown.err) == (0, "")
    assert f"steps {own.decoder.steps}\n" in shown.out
    assert "batch_size" not in shown.out
    changed = script(SETTINGS, pipeline, "steps=7", "--prior_guidance", 1.5)
    assert f"\nsteps 7 (was {own.decoder.steps})\n" in f"\n{changed.out}"
    assert read_sampling(pipeline) == own.override(steps=7, prior_guidance=1.5)
    assert changed.out.count("was") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name the folder of a pipeline"),
        (("{pipeline}", "--batch-size", "3"), "no pipeline stores it"),
        (("{pipeline}", "--steps", "0"), "--steps must be from 1 to"),
        (("{pipeline}", "--steps", "9000"), "steps must be from 1 to"),
        (("{pipeline}", "--stepz", "9"), "did you mean --steps"),
        (("{pipeline}/none",), "holds no trained pipeline"),
        (("{pipeline}", "--fast-steps", "4"), "fast_steps is a setting of the fast_decoder, which this pipeline lacks"),
        (("{pipeline}", "--upscale", "none"), "upscale is a setting of the upsampler, which this pipeline lacks"),
    ],
)
def test_command_refuses_in_one_line(arguments, words, script, tmp_path):
    folder = shutil.copytree(PIPELINES / "format-4", tmp_path / "pipeline")
    before = contents(folder)
    assert_one_error_line(script(SETTINGS, *(word.format(pipeline=folder) for word in arguments)), words)
    assert contents(folder) == before
