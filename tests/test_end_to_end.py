"""Through the command line as a user goes: three trainings of preset tiny, then sample.py and all that it writes."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import REQUIRED, ROOT, assert_one_error_line, contents, files_under, run_python
from foreign import huggingface_clip
from PIL import Image

from data.fashion_mnist_captions import PLAIN_CAPTIONS
from unclip import UnCLIP
from unclip.store.index import newest_pipeline
from unclip.store.manifest import read_manifest
from unclip.store.sealed_json import read_json
from unclip.store.tensors import load_tensors

CAPTIONS = ("An image of an ankle boot", "a dark narrow dress", "")
TEN = (ROOT / "data" / "ten_captions.txt").read_text(encoding="utf-8").splitlines()
FEW = ("--steps", 2, "--prior-steps", 2)


@pytest.fixture(scope="module")
def drawn(trained, tmp_path_factory):
    """The folder that one full call of sample.py writes, run from another folder than the checkout."""
    out = tmp_path_factory.mktemp("drawn") / "deep" / "out"
    options = ("--n", 2, "--seed", 5, "--steps", 12, "--npz", "--gif", "--strip", "--checkpoint", trained.folder)
    finished = run_python(ROOT / "sample.py", *CAPTIONS, *options, "--out", out, cwd=out.parents[1])
    assert finished.code == 0, finished.err
    assert finished.err == ""
    assert "6 images in" in finished.out
    assert str(out / "grid.png") in finished.out
    return out


# --- training ---------------------------------------------------------------------------------------------------------


def test_three_tiny_stages_train_in_time(trained):
    """The budget is 60 s of processor time; twice that, as processors differ."""
    assert sum(trained.seconds.values()) < 120, trained.seconds


def test_pipeline_folder_is_laid_out_as_promised(trained):
    files = set(files_under(trained.folder))
    assert {"model_index.json", "tokenizer.json"} <= files
    for stage in REQUIRED:
        inside = {name.removeprefix(f"{stage}/") for name in files if name.startswith(f"{stage}/")}
        assert {"config.json", "model.safetensors", "train/metrics.jsonl", "train/state.safetensors"} <= inside
        assert any(name.startswith("train/preview-") and name.endswith(".png") for name in inside)
    assert not [name for name in files if name.rsplit("/", 1)[-1].startswith(".")]


def test_index_names_the_weights_of_all_stages(trained):
    index = read_json(trained.folder / "model_index.json")
    assert list(index["parts"]) == list(REQUIRED)
    for stage in REQUIRED:
        assert index["parts"][stage]["sha256"] == read_manifest(trained.folder / stage).sha256


@pytest.mark.parametrize("stage", REQUIRED)
def test_loss_falls_and_figures_are_finite(stage, trained):
    lines = (trained.folder / stage / "train" / "metrics.jsonl").read_text().splitlines()
    figures = [json.loads(line) for line in lines]
    losses = [line["loss"] for line in figures if "loss" in line]
    assert losses[-1] < losses[0]
    assert all(math.isfinite(value) for line in figures for value in line.values())
    assert any(key.startswith("validation/") for line in figures for key in line)
    assert all(line["images_per_second"] > 0 for line in figures if "loss" in line)


def test_tiny_clip_beats_chance_and_tiny_prior_beats_an_unrelated_caption(trained):
    clip, prior = (read_manifest(trained.folder / stage).figures for stage in ("clip", "prior"))
    assert clip["accuracy"] > 0.15  # ten classes
    assert prior["cosine_sample"] > prior["cosine_unrelated"]
    assert prior["cosine_sample"] > prior["cosine_text"]


def test_the_prior_reranks_by_the_captions_of_the_classes(trained):
    pipe = UnCLIP.from_pretrained(trained.folder)
    torch.testing.assert_close(pipe.prior.reranker.class_embeddings, pipe.encode_text(list(PLAIN_CAPTIONS)))
    torch.testing.assert_close(pipe.prior.reranker.logit_scale, pipe.clip.scale()[0])


@pytest.mark.parametrize("stage", REQUIRED)
def test_fine_tuning_starts_from_the_weights_of_another_pipeline(stage, trained, script, tmp_path):
    if stage != "clip":
        shutil.copytree(trained.folder / "clip", tmp_path / "clip")
        shutil.copy(trained.folder / "tokenizer.json", tmp_path)
    few = ("--preset", "tiny", "--train.steps", 1, "--train.lr", "1e-9", "--out", tmp_path)
    finished = script(f"train_{stage}", *few, "--init-from", trained.folder)
    assert finished.code == 0, finished.err
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained.folder / "tokenizer.json").read_bytes()
    ours, theirs = (load_tensors(folder / stage / "model.safetensors")[0] for folder in (tmp_path, trained.folder))
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-6, err_msg=name)
    assert read_manifest(tmp_path / stage).parents["start"] == read_manifest(trained.folder / stage).sha256


def test_fine_tuning_another_shape_is_refused(trained, script, tmp_path):
    options = ("--preset", "tiny", "--out", tmp_path, "--init-from", trained.folder)
    assert_one_error_line(
        script("train_clip", *options, "--model.vision.width", 64), "vision.", "but the model expects"
    )
    missing = script("train_clip", *options[:-1], tmp_path / "no")
    assert_one_error_line(missing, f"{tmp_path / 'no'} does not exist, so it has no clip")


def test_fine_tuning_from_another_projects_clip_is_refused(script, tmp_path):
    huggingface_clip(tmp_path / "foreign")
    (tmp_path / "foreign" / "tokenizer.json").unlink()
    finished = script("train_clip", "--preset", "tiny", "--out", tmp_path, "--init-from", tmp_path / "foreign")
    assert_one_error_line(finished, f"{tmp_path / 'foreign'} has no trained clip")


def test_same_command_again_leaves_a_trained_stage_alone(trained, script):
    before = contents(trained.folder)
    finished = script("train_decoder", "--preset", "tiny", "--out", trained.folder)
    assert finished.code == 0
    assert "is trained already" in finished.err
    assert contents(trained.folder) == before


# --- what sample.py writes --------------------------------------------------------------------------------------------


def test_sample_writes_what_was_asked_for_and_nothing_else(drawn):
    pictures = [f"{i:03d}-{name}-seed{seed}.png" for i, name in enumerate(
        ("an-image-of-an-ankle-boot", "a-dark-narrow-dress", "image")) for seed in (5, 6)]  # fmt: skip
    assert files_under(drawn) == sorted(
        [*pictures, "denoising.gif", "grid.png", "samples.json", "samples.npz", "strip.png"]
    )


def test_archive_holds_images_captions_and_seeds_in_order(drawn):
    with np.load(drawn / "samples.npz") as archive:  # which refuses pickled content
        assert set(archive) == {"images", "captions", "seeds"}
        images, captions, seeds = (archive[name] for name in ("images", "captions", "seeds"))
    assert images.shape == (6, 28, 28, 1)
    assert images.dtype == np.uint8
    assert captions.tolist() == [caption for caption in CAPTIONS for _ in range(2)]
    assert seeds.tolist() == [5, 6] * 3
    assert np.issubdtype(seeds.dtype, np.integer)


def test_pictures_are_the_images_of_the_archive(drawn):
    samples = read_json(drawn / "samples.json")["samples"]
    images = np.load(drawn / "samples.npz")["images"]
    assert len(samples) == len(images)
    for sample, image in zip(samples, images, strict=True):
        assert np.array_equal(np.array(Image.open(drawn / sample["file"])), image[..., 0])


def test_record_says_how_the_samples_were_drawn(drawn, trained):
    record = read_json(drawn / "samples.json")
    assert record["checkpoint"] == str(trained.folder)
    assert record["settings"]["decoder"]["steps"] == 12
    assert set(record["settings"]) == {"prior", "decoder", "fast_decoder", "upsampler", "batch_size"}
    assert [(s["caption"], s["seed"]) for s in record["samples"]] == [(c, s) for c in CAPTIONS for s in (5, 6)]


def test_python_draws_what_the_script_drew(drawn, tiny):
    images = np.load(drawn / "samples.npz")["images"]
    again = tiny(list(CAPTIONS), n=2, seed=5, steps=12).images
    assert np.abs(images.astype(int) - again.astype(int)).max() <= 1


def test_grid_shows_the_images_beside_their_captions(drawn):
    grid = np.array(Image.open(drawn / "grid.png").convert("L"))
    images = np.load(drawn / "samples.npz")["images"][..., 0]
    for image in images:
        enlarged = image.repeat(3, axis=0).repeat(3, axis=1)
        assert contains(grid, enlarged)
    left = grid[:, :200].min(axis=1)  # ink of the captions
    assert (left[: grid.shape[0] // 3] < 100).any()
    assert (left[grid.shape[0] // 3 : 2 * grid.shape[0] // 3] < 100).any()


def contains(sheet: np.ndarray, picture: np.ndarray) -> bool:
    """Whether a picture is pasted somewhere on a sheet."""
    height, width = picture.shape
    corners = np.argwhere(sheet[: len(sheet) - height + 1, : sheet.shape[1] - width + 1] == picture[0, 0])
    return any(np.array_equal(sheet[y : y + height, x : x + width], picture) for y, x in corners)


def test_strip_goes_from_noise_to_the_first_image_of_each_caption(drawn):
    strip = np.array(Image.open(drawn / "strip.png").convert("L"))
    images = np.load(drawn / "samples.npz")["images"][..., 0]
    right, left = strip[:, -95:], strip[:, : -95 * 8]
    for i, image in enumerate(images):
        enlarged = image.repeat(3, axis=0).repeat(3, axis=1)
        assert contains(right, enlarged) == (i % 2 == 0)
        assert not contains(left, enlarged)


def test_animation_has_ten_moments_and_the_result(drawn):
    with Image.open(drawn / "denoising.gif") as animation:
        assert animation.n_frames == 11
        assert animation.info["loop"] == 0  # endless
        animation.seek(10)
        last = np.array(animation.convert("L")).astype(int)
    grid = np.array(Image.open(drawn / "grid.png").convert("L")).astype(int)
    assert last.shape == grid.shape
    assert np.abs(last - grid).mean() < 3  # a palette of 256 colours


# --- where captions come from, where pictures go ----------------------------------------------------------------------


def sampled(script, tmp_path, trained, *arguments, stdin=b""):
    """The captions that a call of sample.py drew."""
    finished = script(
        "sample", *arguments, *FEW, "--checkpoint", trained.folder, "--out", tmp_path / "out", stdin=stdin
    )
    assert finished.code == 0, finished.err
    return [sample["caption"] for sample in read_json(tmp_path / "out" / "samples.json")["samples"]]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
def test_captions_are_read_from_a_file(mark, end, script, tmp_path, trained):
    path = tmp_path / "captions.txt"
    path.write_bytes(mark + end.join([b"a bag", b"", b"   ", "  ein Schuh f\u00fcr 5 \u20ac ".encode(), b"a coat"]))
    found = sampled(script, tmp_path, trained, "--captions-file", path)
    assert found == ["a bag", "ein Schuh f\u00fcr 5 \u20ac", "a coat"]


def test_captions_are_read_from_standard_input(script, tmp_path, trained):
    assert sampled(script, tmp_path, trained, stdin=b"a bag\n\na coat\n") == ["a bag", "a coat"]


def test_ten_captions_work_as_written_and_in_lower_case(script, tmp_path, trained):
    assert len(TEN) == 10
    lower = [caption.lower() for caption in TEN]
    assert sampled(script, tmp_path, trained, *TEN, *lower, "--npz") == TEN + lower
    images = np.load(tmp_path / "out" / "samples.npz")["images"].astype(int)
    assert np.abs(images[:10] - images[10:]).max() <= 1


def test_long_caption_is_drawn_with_one_line_of_warning(script, tmp_path, trained):
    long = "a dark narrow dress " * 30
    finished = script("sample", long, *FEW, "--checkpoint", trained.folder, "--out", tmp_path / "out")
    assert finished.code == 0
    assert finished.err.startswith("warning: caption of ")
    assert finished.err.count("\n") == 1
    assert "is cut to" in finished.err
    assert len(files_under(tmp_path / "out")) == 3


def test_samples_of_one_run_replace_those_of_the_last_as_whole_files(script, tmp_path, trained):
    sampled(script, tmp_path, trained, "a bag")
    first = contents(tmp_path / "out")
    sampled(script, tmp_path, trained, "a bag")
    assert contents(tmp_path / "out") == first


def test_newest_complete_run_is_drawn_from_else_the_committed_one(script, tmp_path, trained, monkeypatch):
    import sample

    monkeypatch.setattr(sample, "CHECKPOINTS", tmp_path / "checkpoints")
    for age, name in enumerate(("fashion-mnist", "newer", "older")):
        shutil.copytree(trained.folder, tmp_path / "checkpoints" / name)
        moment = 1_700_000_000 - 1000 * age
        os.utime(tmp_path / "checkpoints" / name / "decoder" / "config.json", (moment, moment))
    shutil.copytree(trained.folder, tmp_path / "checkpoints" / "emoji")  # as young as a checkout
    assert newest_pipeline(tmp_path / "checkpoints").name == "newer"
    shutil.rmtree(tmp_path / "checkpoints" / "newer" / "decoder")
    assert newest_pipeline(tmp_path / "checkpoints").name == "older"
    (tmp_path / "checkpoints" / "newer" / "prior" / "config.json").write_text("not json")
    assert newest_pipeline(tmp_path / "checkpoints").name == "older"
    shutil.rmtree(tmp_path / "checkpoints" / "older")
    shutil.rmtree(tmp_path / "checkpoints" / "newer")
    assert newest_pipeline(tmp_path / "checkpoints").name == "fashion-mnist"
    UnCLIP.from_pretrained(newest_pipeline(tmp_path / "checkpoints"))
    shutil.rmtree(tmp_path / "checkpoints" / "fashion-mnist")
    finished = script("sample", "a bag", "--out", tmp_path / "out")
    assert finished.code == 1
    assert finished.err.startswith("error: no trained pipeline under checkpoints/")
