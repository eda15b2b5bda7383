"""Each new ability is one file and one row: trained, saved, loaded, drawn from, evaluated and published as the rest."""

import shutil

import numpy as np
import pytest
from PIL import Image
from toys import toy_decoder, toy_image_part, toy_prior, toy_sampler

from unclip import UnCLIP
from unclip.registry import PARTS, SAMPLERS, SamplerRow
from unclip.store.manifest import read_manifest
from unclip.store.publish import publish
from unclip.store.sealed_json import read_json

FEW = ("--steps", 2, "--prior-steps", 2, "--num-candidates", 1)


@pytest.fixture
def rows(monkeypatch) -> None:
    """One row for each toy."""
    monkeypatch.setitem(PARTS["prior"].kinds, "linear", toy_prior.KIND)
    monkeypatch.setitem(PARTS["decoder"].kinds, "linear", toy_decoder.KIND)
    monkeypatch.setitem(PARTS, "enlarger", toy_image_part.PART)
    monkeypatch.setitem(SAMPLERS, "first_guess", SamplerRow(toy_sampler.first_guess, reads=("eta",)))


@pytest.fixture
def extended(rows, trained, script, tmp_path):
    """Train the three toys on the tiny CLIP, each by an ordinary program."""
    folder = tmp_path / "extended"
    shutil.copytree(trained.folder / "clip", folder / "clip")
    shutil.copy(trained.folder / "tokenizer.json", folder)
    programs = (
        ("train_prior", "--kind", "linear"),
        ("train_decoder", "--kind", "linear"),
        ("stages.train", "enlarger"),
    )
    for program, *options in programs:
        finished = script(program, *options, "--preset", "tiny", "--data.limit", 200, "--out", folder)
        assert finished.code == 0, finished.err
    return folder


def draw(script, folder, out, *options) -> np.ndarray:
    finished = script("sample", "a bag", "--n", 2, *options, "--checkpoint", folder, "--out", out)
    assert finished.code == 0, finished.err
    samples = read_json(out / "samples.json")["samples"]
    return np.stack([np.array(Image.open(out / sample["file"])) for sample in samples])


def test_new_kinds_and_a_new_part_are_trained_drawn_and_published(extended, script, tmp_path):
    kinds = {part: read_manifest(extended / part).kind for part in ("prior", "decoder", "enlarger")}
    assert kinds == {"prior": "linear", "decoder": "linear", "enlarger": "repeat"}
    pipe = UnCLIP.from_pretrained(extended)
    assert isinstance(pipe.prior, toy_prior.LinearPrior)
    assert isinstance(pipe.decoder, toy_decoder.LinearDecoder)
    images = draw(script, extended, tmp_path / "out", *FEW)
    assert images.shape == (2, 56, 56)
    assert np.array_equal(pipe("a bag", n=2, steps=2, prior_steps=2, num_candidates=1).images[..., 0], images)
    publish(extended, tmp_path / "published", "extended")
    assert np.array_equal(draw(script, tmp_path / "published", tmp_path / "again", *FEW), images)


def test_a_new_sampler_is_chosen_by_name(rows, trained, script, tmp_path):
    guess = draw(script, trained.folder, tmp_path / "a", *FEW, "--sampler", "first_guess")
    one_step = draw(script, trained.folder, tmp_path / "b", "--steps", 1, *FEW[2:])
    assert np.abs(guess.astype(int) - one_step).max() <= 1
    noisy = draw(script, trained.folder, tmp_path / "c", *FEW, "--sampler", "first_guess", "--eta", 0.5)
    assert not np.array_equal(noisy, guess)
