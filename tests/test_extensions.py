"""Each new ability is one file and one row: trained, saved, loaded, drawn from, evaluated and published as the rest."""

import os
import shutil

import numpy as np
import pytest
from conftest import ROOT, run_program
from PIL import Image
from toys import toy_decoder, toy_image_part, toy_prior

from unclip import UnCLIP
from unclip.registry import PARTS
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
    return read_samples(out)


def read_samples(out) -> np.ndarray:
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
    again = draw(script, tmp_path / "published", tmp_path / "again", *FEW)
    assert np.abs(again.astype(int) - images).max() <= 1  # published weights are rounded


SAMPLE_WITH_ROW = """
from unclip.registry import SAMPLERS, SamplerRow
SAMPLERS["first_guess"] = SamplerRow("toys.toy_sampler:first_guess", reads=("eta",))
from sample import main
from unclip.cli.run import run
run(main)
"""


def test_a_new_sampler_is_chosen_by_name(trained, script, tmp_path):
    options = (*FEW, "--sampler", "first_guess", "--checkpoint", trained.folder, "--out", tmp_path / "toy")
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    finished = run_program("-c", SAMPLE_WITH_ROW, "a bag", "--n", 2, *options, PYTHONPATH=path)
    assert finished.code == 0, finished.err
    one_step = draw(script, trained.folder, tmp_path / "one", "--steps", 1, *FEW[2:])
    assert np.abs(read_samples(tmp_path / "toy").astype(int) - one_step).max() <= 1
