"""A published pipeline is half the size, opens as it is, and draws nearly the same."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import REQUIRED, assert_one_error_line, contents, edit, files_under
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from small_pipeline import build

from unclip import UnCLIP
from unclip.errors import UserError
from unclip.store.index import write_index
from unclip.store.manifest import read_manifest
from unclip.store.publish import publish
from unclip.store.sealed_json import write_json
from unclip.store.tensors import load_tensors

CAPTIONS = ["an image of a bag", "a dark sneaker"]


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """The tiny pipeline, published. Read only."""
    target = tmp_path_factory.mktemp("published") / "pipeline"
    publish(trained.folder, target, "pipeline")
    return target


def test_published_pipeline_holds_its_parts_and_nothing_of_the_training(published, trained):
    assert files_under(published) == sorted(
        ["README.md", "captions.txt", "model_index.json", "samples.png", "tokenizer.json"]
        + [f"{part}/{name}" for part in REQUIRED for name in ("config.json", "model.safetensors")]
    )
    for part in REQUIRED:
        path = f"{part}/model.safetensors"
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
    for part in REQUIRED:
        ours, theirs = read_manifest(published / part), read_manifest(trained.folder / part)
        assert ours.sha256 != theirs.sha256
        for name in ("kind", "training", "data", "sampling", "figures", "step"):
            assert getattr(ours, name) == getattr(theirs, name), name
    index = json.loads((published / "model_index.json").read_text())
    assert index["parts"]["clip"]["sha256"] == read_manifest(published / "prior").parents["clip"]
    assert index["sampling"] == json.loads((trained.folder / "model_index.json").read_text())["sampling"]


def test_an_unfinished_or_missing_part_and_a_taken_folder_are_refused(published, copied, tmp_path):
    with pytest.raises(UserError, match="holds a clip already"):
        publish(copied, published, "again")
    edit(copied / "prior", complete=False)
    with pytest.raises(UserError, match=r"the prior in .* is still in training"):
        publish(copied, tmp_path / "target", "target")
    shutil.rmtree(copied / "decoder")
    with pytest.raises(UserError, match="no trained decoder"):
        publish(copied, tmp_path / "target", "target")
    assert not (tmp_path / "target").exists()


def test_command_says_the_size_or_one_line_of_error(trained, script, tmp_path):
    finished = script("unclip.cli.main:run_command", "publish", trained.folder, tmp_path / "out")
    assert finished.code == 0, finished.err
    assert "MB" in finished.out
    assert_one_error_line(script("unclip.cli.publish", tmp_path / "none", tmp_path / "x"), "none does not exist")
    without = script("unclip.cli.publish", trained.folder, tmp_path / "x", "--evaluation", tmp_path / "none")
    assert_one_error_line(without, "none holds no evaluation.json")
    assert_one_error_line(script("unclip.cli.publish", trained.folder), "nowhere to publish to", "--to-hub OWNER/NAME")


# The model card.


def card(folder: Path) -> tuple[ModelCardData, str]:
    """Its head and its text, as huggingface_hub reads them."""
    read = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    return read.data, read.text


def test_card_has_the_form_of_the_hub(published, trained):
    head, text = card(published)
    assert head.license == "mit"
    assert head.library_name == "unclip"
    assert head.pipeline_tag == "text-to-image"
    assert head.datasets == ["zalando-datasets/fashion_mnist"]
    assert "unclip" in head.tags
    assert head.eval_results is None
    assert text.strip().startswith("# pipeline")
    for part in REQUIRED:
        manifest = read_manifest(published / part)
        assert manifest.sha256[:12] in text
        assert manifest.data["fingerprint"][:12] in text
        assert all(f"| {part} | {figure} | {value:.4g} |" in text for figure, value in manifest.figures.items())
    with Image.open(published / "samples.png") as picture:
        assert min(picture.size) > 100
    assert str(trained.folder) not in text


def test_evaluation_joins_the_card_of_its_own_weights_alone(tmp_path, capsys):
    folder = build(tmp_path / "own")
    share = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    drawn = {"caption_accuracy": share, "precision": share, "recall": share, "frechet": 1.25}
    parts = {part: {"sha256": read_manifest(folder / part).sha256} for part in REQUIRED}
    report = {"stages": parts, "data": {"name": "fashion-mnist/test"}, "samples": 4, "clip": {"zero_shot": share}}
    write_json(tmp_path / "report" / "evaluation.json", report | {"error_budget": {"prior": drawn}})
    (tmp_path / "report" / "evaluation.md").write_text("all of it")
    publish(folder, tmp_path / "one", "one", evaluation=tmp_path / "report")
    head, text = card(tmp_path / "one")
    assert {result.metric_name: result.metric_value for result in head.eval_results}["Fréchet distance"] == 1.25
    assert "| caption accuracy of samples | 50.0% (25.0-75.0) |" in text
    assert (tmp_path / "one" / "evaluation.md").read_text() == "all of it"
    parts["prior"]["sha256"] = "another"
    write_json(tmp_path / "report" / "evaluation.json", report)
    publish(folder, tmp_path / "two", "two", evaluation=tmp_path / "report")
    assert "is of other weights, and is left out" in capsys.readouterr().out
    assert not (tmp_path / "two" / "evaluation.md").exists()


def test_what_is_no_whole_report_is_refused_before_anything_is_written(tmp_path):
    folder = build(tmp_path / "own")
    parts = {part: {"sha256": read_manifest(folder / part).sha256} for part in REQUIRED}
    share = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    drawn = {"caption_accuracy": share, "precision": share, "recall": share, "frechet": 1.25}
    whole = {"stages": parts, "samples": 4, "data": {"name": "x"}, "clip": {"zero_shot": share}}
    partial = whole | {"error_budget": {"prior": drawn}, "only": ["clip", "error_budget"]}
    for report in ([], {}, {"stages": []}, {"stages": parts}, {"stages": parts, "samples": 4, "data": "x"}, partial):
        write_json(tmp_path / "report" / "evaluation.json", report)
        with pytest.raises(UserError, match=r"evaluation.json is not a whole report of this version; make it again"):
            publish(folder, tmp_path / "out", "out", evaluation=tmp_path / "report")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "given", "licence", "datasets"),
    [("somebody/birds", None, "unknown", ["somebody/birds"]), ("birds", None, "unknown", None),
     ("birds", "cc-by-4.0", "cc-by-4.0", None), ("emoji", None, "ofl-1.1", None)],
)  # fmt: skip
def test_licence_and_data_set_are_named_as_far_as_they_are_known(data, given, licence, datasets, tmp_path):
    folder, example = build(tmp_path / "own"), "a | b: 'c'\n# \"d\""
    for part in REQUIRED:
        edit(folder / part, data={"name": f"{data}/train", "fingerprint": "0" * 64, "example": example})
    write_index(folder)
    publish(folder, tmp_path / "out", "me/own", given)
    head, text = card(tmp_path / "out")
    assert (head.license, head.datasets) == (licence, datasets)
    assert r"| a \| b: 'c' # " in text


def test_what_is_cut_short_leaves_nothing_so_that_the_same_command_goes_on(tmp_path, monkeypatch):
    folder = build(tmp_path / "own")
    with monkeypatch.context() as broken:
        broken.setattr("unclip.store.publish.model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish(folder, tmp_path / "out", "out")
    assert not list((tmp_path / "out").iterdir())
    publish(folder, tmp_path / "out", "out")
    assert UnCLIP.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").is_file()
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("place", ["/home/me/clips/vit", "../clips/vit", "~/clips/vit"])
def test_place_of_a_pretrained_clip_on_this_machine_is_not_told(place, tmp_path):
    folder = build(tmp_path / "own")
    edit(folder / "clip", training={"pretrained": place})
    write_index(folder)
    publish(folder, tmp_path / "out", "out")
    assert "the pretrained vit" in card(tmp_path / "out")[1]
    assert all(b"clips" not in content for content in contents(tmp_path / "out").values())
