"""A run that is resumed with other settings is refused with the option that sets them back."""

import re
from dataclasses import asdict, replace

import pytest

from configs import clip, decoder, prior
from stages.identity import check_same_run, settings
from unclip.errors import UserError
from unclip.store.manifest import Manifest, write_manifest

PRESETS = {"clip": clip.PRESETS, "prior": prior.PRESETS, "decoder": decoder.PRESETS}


def manifest_of(part: str, preset: str, **changes) -> Manifest:
    run = PRESETS[part][preset]
    run = replace(run, train=replace(run.train, **changes))
    return Manifest(part, model=asdict(run.model), training=settings(run), sha256="a" * 64)


@pytest.mark.parametrize("part", PRESETS)
@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_run_of_another_preset_names_the_preset_and_the_command_for_settings_of_sampling(part, preset, tmp_path):
    folder = tmp_path / part
    write_manifest(folder, manifest_of(part, preset, steps=17))
    with pytest.raises(UserError, match=f"--preset {preset}, or near them.*unclip settings {tmp_path}"):
        check_same_run(folder, manifest_of(part, "quick"))
    with pytest.raises(UserError) as caught:
        check_same_run(folder, manifest_of(part, preset, steps=18))
    assert "--preset" not in str(caught.value)
    assert check_same_run(folder, manifest_of(part, preset, steps=17)) is False


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"start": "b" * 64}, {}, "--init-from = the weights bbbbbbbbbbbb.., not none; give --init-from as"),
        ({}, {"start": "b" * 64}, "--init-from = none, not the weights bbbbbbbbbbbb..; give --init-from as"),
        ({"start": "b" * 64}, {"start": "c" * 64}, "not the weights cccccccccccc..; give --init-from as"),
    ],
)
def test_weights_that_a_run_starts_from_are_named_by_their_option(before, now, words, tmp_path):
    write_manifest(tmp_path / "clip", replace(manifest_of("clip", "tiny"), parents={"tokenizer": "1"} | before))
    with pytest.raises(UserError, match=re.escape(words)):
        check_same_run(tmp_path / "clip", replace(manifest_of("clip", "tiny"), parents={"tokenizer": "2"} | now))
