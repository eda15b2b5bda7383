"""A published pipeline is half the size, opens as it is, and draws nearly the same."""

import json
import shutil

import pytest
from conftest import assert_one_error_line, edit, files_under, run_python

from unclip import UnCLIP
from unclip.checkpoint import load_tensors, read_manifest
from unclip.errors import UserError
from unclip.publish import publish
from unclip.registry import STAGES

CAPTIONS = ["an image of a bag", "a dark sneaker"]


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """The tiny pipeline, published. Read only."""
    target = tmp_path_factory.mktemp("published") / "pipeline"
    publish(trained.folder, target)
    return target


def test_published_pipeline_holds_its_stages_and_nothing_of_the_training(published, trained):
    assert files_under(published) == sorted(
        ["README.md", "captions.txt", "model_index.json", "tokenizer.json"]
        + [f"{stage}/{name}" for stage in STAGES for name in ("config.json", "model.safetensors")]
    )
    for stage in STAGES:
        path = f"{stage}/model.safetensors"
        assert (published / path).stat().st_size < 0.6 * (trained.folder / path).stat().st_size
        halves, whole = load_tensors(published / path)[0], load_tensors(trained.folder / path)[0]
        assert all(
            abs(halves[name].float() - whole[name]).max() <= 1e-3 * (1 + abs(whole[name]).max()) for name in whole
        )


def test_published_pipeline_draws_nearly_the_same(published, tiny):
    ours, theirs = (pipe(CAPTIONS, n=2, seed=3, steps=5) for pipe in (UnCLIP.from_pretrained(published), tiny))
    assert abs(ours.images.astype(int) - theirs.images).mean() < 1
    assert (ours.embeddings * theirs.embeddings).sum(dim=1).min() > 0.999


def test_published_manifests_keep_the_history_and_renew_the_hashes(published, trained):
    for stage in STAGES:
        ours, theirs = read_manifest(published / stage), read_manifest(trained.folder / stage)
        assert ours.sha256 != theirs.sha256
        for name in ("kind", "training", "data", "sampling", "figures", "step"):
            assert getattr(ours, name) == getattr(theirs, name), name
    index = json.loads((published / "model_index.json").read_text())
    assert index["stages"]["clip"]["sha256"] == read_manifest(published / "prior").parents["clip"]
    assert index["sampling"] == json.loads((trained.folder / "model_index.json").read_text())["sampling"]


def test_an_unfinished_or_missing_stage_and_a_taken_folder_are_refused(published, copied, tmp_path):
    with pytest.raises(UserError, match="holds a clip already"):
        publish(copied, published)
    edit(copied / "prior", complete=False)
    with pytest.raises(UserError, match=r"the prior in .* is still in training"):
        publish(copied, tmp_path / "target")
    shutil.rmtree(copied / "decoder")
    with pytest.raises(UserError, match="no trained decoder"):
        publish(copied, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_command_says_the_size_or_one_line_of_error(trained, tmp_path):
    finished = run_python("-m", "unclip.publish", trained.folder, tmp_path / "out")
    assert finished.code == 0, finished.err
    assert "MB" in finished.out
    assert_one_error_line(run_python("-m", "unclip.publish", tmp_path / "none", tmp_path / "x"), "none does not exist")
